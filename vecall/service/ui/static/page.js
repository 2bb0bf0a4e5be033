// Comfort: every page works without it, but for activating a release.
"use strict";

function suggestUsers() {
  const input = document.getElementById("user");
  const list = document.getElementById("users");
  if (!input || !list) return;
  let waiting;
  input.addEventListener("input", () => {
    clearTimeout(waiting);
    waiting = setTimeout(async () => {
      const answer = await fetch("/ui/users?prefix=" + encodeURIComponent(input.value));
      if (!answer.ok) return;
      const { ids } = await answer.json();
      list.replaceChildren(...ids.map((id) => Object.assign(document.createElement("option"), { value: id })));
    }, 150);
  });
}

// The last row of filters is an empty one: once it is used, another follows.
function addFilters() {
  const form = document.getElementById("explore");
  if (!form) return;
  form.addEventListener("change", (event) => {
    const rows = form.querySelectorAll(".filter");
    const last = rows[rows.length - 1];
    if (event.target.name !== "field" || !event.target.value || !last.contains(event.target)) return;
    const next = last.cloneNode(true);
    next.querySelectorAll("select").forEach((one) => { one.selectedIndex = 0; });
    next.querySelector("input").value = "";
    last.after(next);
  });
}

function submitOnChange() {
  document.querySelectorAll("[data-submit]").forEach((one) => {
    one.addEventListener("change", () => one.form.submit());
  });
}

function activateReleases() {
  const said = document.getElementById("said");
  document.querySelectorAll("[data-activate]").forEach((button) => {
    button.addEventListener("click", async () => {
      const name = button.dataset.activate;
      if (!confirm(button.dataset.ask + " " + name)) return;
      button.disabled = true;
      const answer = await fetch("/v1/releases/activate", {
        method: "POST",
        headers: { "Content-Type": "application/json" },
        body: JSON.stringify({ name }),
      });
      const told = await answer.json();
      if (answer.ok) {
        said.textContent = said.dataset.done + ": " + told.release;
        location.reload();
      } else {
        said.textContent = said.dataset.failed + ": " + told.error.message;
        button.disabled = false;
      }
    });
  });
}

suggestUsers();
addFilters();
submitOnChange();
activateReleases();
