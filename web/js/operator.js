// The operator's token in the header of a page: a field for it, or that it is there. It stays in this tab.

import { setToken, takeToken, token } from "./api.js";
import { byId, make } from "./dom.js";

/** Shows the field; `onChange` is called when the token has changed. */
export function showOperator(onChange) {
  takeToken();
  const form = byId("operator");
  const show = () => {
    if (token()) {
      const out = make("button", "", "Forget token");
      out.type = "submit";
      form.replaceChildren(make("span", "quiet", "Operator"), out);
      return;
    }
    const label = make("label", "quiet", "Token ");
    const field = make("input");
    field.type = "password";
    field.name = "token";
    field.autocomplete = "off";
    field.size = 12;
    label.append(field);
    const submit = make("button", "", "Use");
    submit.type = "submit";
    form.replaceChildren(label, submit);
  };
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    setToken(token() ? null : new FormData(form).get("token"));
    show();
    onChange();
  });
  window.addEventListener("hashchange", () => {
    const before = token();
    takeToken();
    if (token() === before) return;
    show();
    onChange();
  });
  show();
}
