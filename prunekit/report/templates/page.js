// Fold and unfold all code, and remember the choice where the browser allows it.
const button = document.getElementById("show-code");
if (button) {
  const blocks = [...document.querySelectorAll("details.code")];
  const remember = (value) => { try { localStorage.setItem("prunekit-code", value); } catch { /* file URLs may refuse */ } };
  const recall = () => { try { return localStorage.getItem("prunekit-code"); } catch { return null; } };
  const show = (all) => {
    for (const block of blocks) block.open = all || "open" in block.dataset;
    button.textContent = all ? "Hide code" : "Show all code";
    button.setAttribute("aria-pressed", String(all));
  };
  button.hidden = blocks.length === 0;
  button.addEventListener("click", () => {
    const all = button.getAttribute("aria-pressed") !== "true";
    show(all);
    remember(all ? "shown" : "folded");
  });
  show(recall() === "shown");
}
