// Asks the server: views, status, SQL. Knows the operator's token, which comes after a # in the address, as printed at
// start, and is then kept for this tab only.

const TIMEOUT_MS = 10_000;
const TOKEN_KEY = "tally.token";

/** A refusal of the server, in its own words. */
export class Refusal extends Error {
  constructor(status, body) {
    super(String(body?.detail || body?.title || `The server answered ${status}.`));
    this.status = status;
    this.line = body?.line ?? null;
    this.column = body?.column ?? null;
  }
}

/** Takes the token out of the address, so that it isn't shared with it. */
export function takeToken() {
  const fragment = new URLSearchParams(location.hash.slice(1));
  const token = fragment.get("token");
  if (!token) return;
  fragment.delete("token");
  const rest = fragment.toString();
  history.replaceState(history.state, "", location.pathname + location.search + (rest ? `#${rest}` : ""));
  setToken(token);
}

export function setToken(token) {
  try {
    if (token) sessionStorage.setItem(TOKEN_KEY, token);
    else sessionStorage.removeItem(TOKEN_KEY);
  } catch {
    // Storage may be forbidden: the token then has to be given again.
  }
}

export function token() {
  try {
    return sessionStorage.getItem(TOKEN_KEY);
  } catch {
    return null;
  }
}

/** The answer to a request, or a `Refusal`. */
export async function ask(path, { accept = "application/json", body = null, signal = null } = {}) {
  const headers = { Accept: accept };
  if (token()) headers.Authorization = `Bearer ${token()}`;
  if (body) headers["Content-Type"] = "application/json";
  const response = await fetch(path, {
    method: body ? "POST" : "GET",
    headers,
    body: body ? JSON.stringify(body) : undefined,
    cache: "no-store",
    signal: signal ?? AbortSignal.timeout(TIMEOUT_MS),
  });
  if (response.ok) return response;
  let problem = null;
  try {
    problem = await response.json();
  } catch {
    // Not problem JSON: the status code has to do.
  }
  throw new Refusal(response.status, problem);
}

export const json = async (path, options) => (await ask(path, options)).json();

/** URL of a view's rows; `query` holds sort, order, limit, offset. */
export function viewUrl(name, query = {}) {
  const text = new URLSearchParams(query).toString();
  return `/api/views/${encodeURIComponent(name)}${text ? `?${text}` : ""}`;
}
