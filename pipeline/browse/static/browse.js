// Keys: / search, n next, p previous, r random. And a filter that is chosen from a list is applied at once.
"use strict";
const LINKS = { n: "#next", p: "#previous", r: "#random" };
document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey || event.target.matches("input, select, textarea")) return;
  if (event.key === "/") {
    event.preventDefault();
    document.querySelector("#q").focus();
  } else if (LINKS[event.key]) {
    document.querySelector(LINKS[event.key])?.click();
  }
});
document.querySelectorAll("#filters select, #filters input[type=checkbox]").forEach((field) =>
  field.addEventListener("change", () => field.form.requestSubmit())
);
// Empty filters stay out of the address.
document.querySelector("#filters").addEventListener("submit", (event) => {
  for (const field of event.target.elements) field.disabled = field.name !== "" && field.value === "";
});
window.addEventListener("pageshow", () => {
  for (const field of document.querySelector("#filters").elements) field.disabled = false;
});
// A search that has met nothing yet goes on by itself, a bounded request at a time, until it is stopped.
const further = document.querySelector("[data-go]");
if (further) {
  const timer = setTimeout(() => location.replace(further.href), 300);
  const button = document.querySelector("#stop");
  const stop = () => {
    clearTimeout(timer);
    button.remove();
  };
  button.addEventListener("click", stop);
  document.addEventListener("keydown", (event) => event.key === "Escape" && stop());
}
