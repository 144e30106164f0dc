// Copy buttons. Without this file the fields can still be selected by hand.
"use strict";

const said = (button, text) => {
  const before = button.textContent;
  button.textContent = text;
  button.disabled = true;
  setTimeout(() => {
    button.textContent = before;
    button.disabled = false;
  }, 1800);
};

for (const button of document.querySelectorAll("[data-copy]")) {
  const field = document.getElementById(button.dataset.copy);
  button.hidden = false;
  button.setAttribute("aria-live", "polite");
  button.addEventListener("click", async () => {
    try {
      await navigator.clipboard.writeText(field.value);
    } catch { // No clipboard without https, or without leave.
      field.select();
      if (!document.execCommand("copy")) return;
    }
    said(button, "Copied");
  });
  field.addEventListener("focus", () => field.select());
}
