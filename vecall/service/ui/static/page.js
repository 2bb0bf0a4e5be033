// Comforts. Every page works without them, except for activating a release.
"use strict";

const SUGGESTION_DELAY_MS = 150;

function suggestUsers() {
  const input = document.getElementById("user");
  const list = document.getElementById("users");
  if (!input || !list) return;
  let timer;
  input.addEventListener("input", () => {
    clearTimeout(timer);
    timer = setTimeout(async () => {
      const response = await fetch("/ui/users?prefix=" + encodeURIComponent(input.value));
      if (!response.ok) return;
      const { ids } = await response.json();
      list.replaceChildren(...ids.map((id) => Object.assign(document.createElement("option"), { value: id })));
    }, SUGGESTION_DELAY_MS);
  });
}

// Shows the operations and the hint of a filter's attribute.
function explainFilter(row) {
  const [field, op] = row.querySelectorAll("select");
  const { ops, hint, listHint, values } = field.selectedOptions[0].dataset;
  const allowed = ops ? ops.split(" ") : null;
  for (const option of op.options) option.hidden = allowed !== null && !allowed.includes(option.value);
  if (op.selectedOptions[0].hidden) op.value = allowed[0];
  const takesList = ["in", "not_in"].includes(op.value) || op.value.startsWith("contains_");
  row.querySelector(".hint").textContent = (takesList ? listHint : hint) || "";
  const input = row.querySelector("input");
  if (values && document.getElementById(values)) input.setAttribute("list", values);
  else input.removeAttribute("list");
}

function clearFilter(row) {
  row.querySelectorAll("select").forEach((select) => { select.selectedIndex = 0; });
  row.querySelector("input").value = "";
  explainFilter(row);
}

function addFilter(filters) {
  const rows = filters.querySelectorAll(".filter");
  const last = rows[rows.length - 1];
  const row = last.cloneNode(true);
  const number = Number(row.querySelector(".hint").id.split("-")[1]) + 1; // from 0; labels count from 1
  const hintId = "hint-" + number;
  row.ariaLabel = row.ariaLabel.replace(/\d+$/, number + 1);
  row.querySelector(".hint").id = hintId;
  row.querySelector("input").setAttribute("aria-describedby", hintId);
  clearFilter(row);
  last.after(row);
  row.querySelector("select").focus();
}

function removeFilter(filters, row) {
  const rows = [...filters.querySelectorAll(".filter")];
  if (rows.length === 1) {
    clearFilter(row);
    row.querySelector("select").focus();
    return;
  }
  const next = rows[rows.indexOf(row) + 1] ?? rows[rows.indexOf(row) - 1];
  row.remove();
  next.querySelector("select").focus();
}

function editFilters() {
  const form = document.getElementById("explore");
  const filters = document.getElementById("filters");
  if (!form || !filters) return;
  filters.addEventListener("change", (event) => {
    if (event.target.tagName === "SELECT") explainFilter(event.target.closest(".filter"));
  });
  filters.addEventListener("click", (event) => {
    const button = event.target.closest("button");
    if (!button) return;
    event.preventDefault();
    if (button.name === "add") addFilter(filters);
    else removeFilter(filters, button.closest(".filter"));
  });
  const emptyRows = () => [...filters.querySelectorAll(".filter")].filter((row) => !row.querySelector("select").value);
  const setDisabled = (row, disabled) => {
    for (const field of row.querySelectorAll("select, input")) field.disabled = disabled;
  };
  // Disabled fields are not sent, which keeps empty rows out of the URL.
  form.addEventListener("submit", () => emptyRows().forEach((row) => setDisabled(row, true)));
  addEventListener("pageshow", () => filters.querySelectorAll(".filter").forEach((row) => setDisabled(row, false)));
}

function copyCommands() {
  document.querySelectorAll("[data-copy]").forEach((button) => {
    const code = button.parentElement.querySelector("code");
    const label = button.textContent;
    button.hidden = false;
    button.addEventListener("click", async () => {
      try {
        await navigator.clipboard.writeText(code.textContent);
      } catch { // browsers have no clipboard for pages from plain HTTP, other than localhost
        getSelection().selectAllChildren(code);
        document.execCommand("copy");
      }
      button.textContent = button.dataset.done;
      setTimeout(() => { button.textContent = label; }, 2000);
    });
  });
}

function activateReleases() {
  const status = document.getElementById("activation-status");
  document.getElementById("activate-without-script")?.remove();
  document.querySelectorAll("[data-activate]").forEach((button) => {
    button.hidden = false;
    button.addEventListener("click", async () => {
      const name = button.dataset.activate;
      if (!confirm(button.dataset.ask)) return;
      button.disabled = true;
      const response = await fetch("/v1/releases/activate", {
        method: "POST",
        headers: { "Content-Type": "application/json" },
        body: JSON.stringify({ name }),
      });
      const body = await response.json();
      if (response.ok) {
        status.className = "note";
        status.textContent = status.dataset.done.replace("{}", () => body.release);
        location.reload();
      } else {
        status.className = "problem";
        status.textContent = status.dataset.failed.replace("{}", () => body.error.message);
        status.scrollIntoView({ block: "center" });
        button.disabled = false;
      }
    });
  });
}

suggestUsers();
editFilters();
copyCommands();
activateReleases();
