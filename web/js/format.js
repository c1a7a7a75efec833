// Turns values of the API into text for readers. Every number and time on the page passes here.

const locale = document.documentElement.lang || undefined;
const whole = new Intl.NumberFormat(locale, { maximumFractionDigits: 0 });
const upToTwo = new Intl.NumberFormat(locale, { maximumFractionDigits: 2 });
const one = new Intl.NumberFormat(locale, { minimumFractionDigits: 1, maximumFractionDigits: 1 });
const two = new Intl.NumberFormat(locale, { minimumFractionDigits: 2, maximumFractionDigits: 2 });
const short = new Intl.NumberFormat(locale, { notation: "compact", maximumFractionDigits: 1 });
const clock = new Intl.DateTimeFormat(locale, { hour: "2-digit", minute: "2-digit", second: "2-digit", hourCycle: "h23" });
const minute = new Intl.DateTimeFormat(locale, { hour: "2-digit", minute: "2-digit", hourCycle: "h23" });
const dayMinute = new Intl.DateTimeFormat(locale, { day: "numeric", month: "short", hour: "2-digit", minute: "2-digit", hourCycle: "h23" });

export const NONE = "–";

/** A finite number, or null: the API gives null for an SQL NULL. */
export function number(value) {
  if (value === null || value === undefined || value === "") return null;
  const parsed = Number(value);
  return Number.isFinite(parsed) ? parsed : null;
}

const as = (format, unit = "") => (value) => {
  const parsed = number(value);
  return parsed === null ? NONE : format.format(parsed) + unit;
};

/** "+2.3", "−1.0", "0.0". */
export function signed(value) {
  const parsed = number(value);
  if (parsed === null) return NONE;
  const text = one.format(Math.abs(parsed));
  return text === one.format(0) ? text : `${parsed > 0 ? "+" : "−"}${text}`;
}

export const count = as(whole);
export const decimal = as(upToTwo);
export const compact = as(short);
export const percent = as(one, " %");
export const percentExact = as(two, " %");

/** "68.2 % (+1.3 on last time)", of a row with both turnouts. */
export function turnoutBeside(row) {
  const [now, before] = [number(row.turnout_pct), number(row.previous_turnout_pct)];
  return percent(now) + (now === null || before === null ? "" : ` (${signed(now - before)} on last time)`);
}

export function plural(value, singular, many = `${singular}s`) {
  return `${count(value)} ${number(value) === 1 ? singular : many}`;
}

/** `part` in percent of `total`, null where there is no total. */
export function shareOf(part, total) {
  return number(part) === null || !(total > 0) ? null : (100 * number(part)) / total;
}

/** Milliseconds since 1970 of an API timestamp, which is UTC where it names no zone; null if there is none. */
export function instant(value) {
  if (value === null || value === undefined || value === "") return null;
  const text = String(value).trim().replace(" ", "T");
  const zoned = /(Z|[+-]\d\d:?\d\d)$/i.test(text) ? text : `${text}Z`;
  const parsed = Date.parse(zoned);
  return Number.isNaN(parsed) ? null : parsed;
}

const formatted = (format) => (ms) => (ms === null || ms === undefined ? NONE : format.format(ms));
export const clockTime = formatted(clock);
export const minuteTime = formatted(minute);
export const dayMinuteTime = formatted(dayMinute);

/** "14 s", "3 min", "2 h 05 min". */
export function duration(seconds) {
  const s = Math.max(0, Math.round(number(seconds) ?? 0));
  if (s < 60) return `${s} s`;
  if (s < 3600) return `${Math.floor(s / 60)} min`;
  return `${whole.format(Math.floor(s / 3600))} h ${String(Math.floor((s % 3600) / 60)).padStart(2, "0")} min`;
}

/** Text of a name column, or `missing` for NULL and blanks. */
export function name(value, missing = "Not given") {
  const text = value === null || value === undefined ? "" : String(value).trim();
  return text === "" ? missing : text;
}
