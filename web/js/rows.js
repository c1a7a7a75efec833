// A table of any rows: columns as they come, numbers to the right. For pages that do not know what they show.

import { make } from "./dom.js";
import { number } from "./format.js";

const NUMERIC = /^(u?int|float|decimal|double|bigint|smallint|real|numeric)/i;
export const isNumeric = (column) => NUMERIC.test(column.type ?? "");

/** Text of any value of the API. */
export function valueText(value) {
  if (value === null || value === undefined) return "NULL";
  return typeof value === "object" ? JSON.stringify(value) : String(value);
}

/** A table element of `{ columns, rows }`. */
export function rowsTable({ columns, rows }, caption) {
  const table = make("table", "rows");
  const title = make("caption", "unseen", caption);
  const [head, body] = [make("thead"), make("tbody")];
  const line = make("tr");
  for (const column of columns) {
    const cell = make("th", isNumeric(column) ? "number" : "", column.name);
    cell.scope = "col";
    cell.title = column.type ?? "";
    line.append(cell);
  }
  head.append(line);
  for (const row of rows) {
    const line = make("tr");
    for (const column of columns) {
      const value = row[column.name];
      const cell = make("td", isNumeric(column) ? "number" : "", valueText(value));
      if (value === null || value === undefined) cell.classList.add("null");
      line.append(cell);
    }
    body.append(line);
  }
  table.append(title, head, body);
  return table;
}

/** The rows as CSV, as spreadsheets read it. */
export function csv({ columns, rows }) {
  const field = (value) => {
    if (value === null || value === undefined) return "";
    const text = valueText(value);
    return /[",\n\r]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text;
  };
  const lines = [columns.map((column) => field(column.name)), ...rows.map((row) => columns.map((column) => field(row[column.name])))];
  return lines.map((line) => line.join(",")).join("\r\n") + "\r\n";
}

/** Offers `content` as a file. */
export function download(content, type, file) {
  const link = make("a");
  link.href = URL.createObjectURL(content instanceof Blob ? content : new Blob([content], { type }));
  link.download = file;
  document.body.append(link);
  link.click();
  link.remove();
  setTimeout(() => URL.revokeObjectURL(link.href), 1000);
}

/** Which columns make a chart: the first that names, and those of numbers. */
export function chartable({ columns, rows }) {
  const numbers = columns.filter((column) => isNumeric(column) && rows.some((row) => number(row[column.name]) !== null));
  const label = columns.find((column) => !numbers.includes(column)) ?? null;
  return numbers.length === 0 || rows.length === 0 ? null : { label, numbers };
}
