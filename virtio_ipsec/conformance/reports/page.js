"use strict";
(() => {
  const form = document.getElementById("filters");
  const search = document.getElementById("search");
  const level = document.getElementById("level");
  const boxes = [...form.querySelectorAll("input[type=checkbox]")];
  const items = [...document.querySelectorAll("article, details.case")];
  const texts = new Map(items.map((item) => [item, item.textContent.toLowerCase()]));
  const sections = [...document.querySelectorAll("details.section")].reverse();
  const wasOpen = new Map(sections.map((section) => [section, section.open]));

  const apply = () => {
    const words = search.value.toLowerCase().split(/\s+/).filter(Boolean);
    const wanted = new Set(boxes.filter((box) => box.checked).map((box) => box.value));
    const narrowed = words.length > 0 || level.value !== "" || boxes.some((box) => !box.checked);
    let clauses = 0, cases = 0;
    for (const item of items) {
      const isClause = item.tagName === "ARTICLE";
      const shown = wanted.has(item.dataset.verdict)
        && (!level.value || !isClause || item.dataset.level === level.value)
        && words.every((word) => texts.get(item).includes(word));
      item.hidden = !shown;
      clauses += shown && isClause;
      cases += shown && !isClause;
    }
    for (const section of sections) {
      section.hidden = !section.querySelector("article:not([hidden])");
      section.open = narrowed ? !section.hidden : wasOpen.get(section);
    }
    document.getElementById("shown").value = `${clauses} clauses, ${cases} cases`;
  };

  // A link to a clause or a case must find it, whatever is folded or filtered away.
  const reveal = () => {
    const target = document.getElementById(decodeURIComponent(location.hash.slice(1)));
    if (!target) return;
    target.hidden = false;
    for (let at = target; at; at = at.parentElement) {
      if (at.tagName === "DETAILS") { at.hidden = false; at.open = true; }
    }
    target.scrollIntoView();
  };

  form.hidden = false;
  form.addEventListener("input", apply);
  form.addEventListener("submit", (event) => event.preventDefault());
  addEventListener("hashchange", reveal);
  addEventListener("beforeprint", () => {
    for (const item of document.querySelectorAll("details.section")) item.open = true;
  });
  apply();
  reveal();
})();
