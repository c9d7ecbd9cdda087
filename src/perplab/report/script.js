// The page works without this script; it adds the theme switch, the views, and the details of the token in focus.
"use strict";

for (const input of document.querySelectorAll("#theme input")) {
  input.addEventListener("change", () => {
    document.documentElement.dataset.theme = input.value;
  });
}

const section = document.getElementById("text");
if (section) {
  readTokens(section, JSON.parse(document.getElementById("data").textContent));
}

function readTokens(section, data) {
  const columns = document.querySelector("#details .columns");
  const spoken = document.getElementById("spoken");
  const places = new Map(); // token element -> where it is
  const panes = [...section.querySelectorAll(".document")].flatMap((article, number) =>
    [...article.querySelectorAll(".text")].map((text, model) => readPane(text, model, data.documents[number][model])),
  );

  for (const input of section.querySelectorAll("#view input")) {
    input.addEventListener("change", () => {
      section.dataset.view = input.value;
    });
  }
  section.addEventListener("pointerover", (event) => visit(event.target));
  section.addEventListener("focusin", (event) => visit(event.target));
  section.addEventListener("click", (event) => enter(event.target.closest(".text i")));
  section.addEventListener("keydown", walk);

  function readPane(text, model, scores) {
    const pane = { model, scores, tokens: [...text.children], twin: null, entrance: null };
    pane.tokens.forEach((token, index) => places.set(token, { pane, index }));
    let end = 0;
    pane.ends = (scores.sizes || []).map((size) => (end += size));
    open(pane, pane.tokens[0]);
    return pane;
  }

  for (let number = 0; data.models.length === 2 && number < panes.length; number += 2) {
    [panes[number].twin, panes[number + 1].twin] = [panes[number + 1], panes[number]];
  }

  // One token of each pane can be reached with Tab; the arrow keys do the rest.
  function open(pane, token) {
    pane.entrance?.removeAttribute("tabindex");
    pane.entrance = token;
    token.tabIndex = 0;
  }

  function enter(token) {
    if (!token) return;
    open(places.get(token).pane, token);
    token.focus();
  }

  function walk(event) {
    const place = places.get(event.target);
    if (!place || event.altKey || event.ctrlKey || event.metaKey) return;
    const { tokens } = place.pane;
    const backwards = getComputedStyle(event.target.parentElement).direction === "rtl" ? -1 : 1;
    const target = {
      ArrowRight: () => tokens[place.index + backwards],
      ArrowLeft: () => tokens[place.index - backwards],
      ArrowDown: () => onNextLine(tokens, place.index, 1),
      ArrowUp: () => onNextLine(tokens, place.index, -1),
      Home: () => tokens[0],
      End: () => tokens.at(-1),
    }[event.key];
    if (!target) return;
    event.preventDefault();
    enter(target());
  }

  // The token of the next line, in one direction, that begins nearest to below or above this one.
  function onNextLine(tokens, index, step) {
    const from = tokens[index].getClientRects()[0];
    let best = null;
    let line = null;
    let nearest = Infinity;
    for (let at = index + step; at >= 0 && at < tokens.length; at += step) {
      const { top, left, height } = tokens[at].getClientRects()[0];
      if (Math.abs(top - from.top) < height / 2) continue;
      line ??= top;
      if (Math.abs(top - line) > height / 2) break;
      if (Math.abs(left - from.left) < nearest) [best, nearest] = [tokens[at], Math.abs(left - from.left)];
    }
    return best;
  }

  function visit(element) {
    const token = element.closest?.(".text i");
    const place = token && places.get(token);
    if (!place || token.classList.contains("current")) return;
    for (const old of section.querySelectorAll(".current, .partner")) old.classList.remove("current", "partner");
    token.classList.add("current");
    const partner = partnerOf(place);
    partner?.pane.tokens[partner.index].classList.add("partner");
    const shown = [place, partner].filter(Boolean).sort((one, other) => one.pane.model - other.pane.model);
    columns.replaceChildren(...shown.map((each) => column(each, partner)));
    spoken.textContent = sentence(place);
  }

  // The other model's token that holds the byte this one begins with.
  function partnerOf({ pane, index }) {
    if (!pane.twin) return null;
    const start = pane.ends[index] - pane.scores.sizes[index];
    const at = pane.twin.ends.findIndex((end) => end > start);
    return at < 0 ? null : { pane: pane.twin, index: at };
  }

  function column({ pane, index }, paired) {
    const { scores, model } = pane;
    const facts = [
      ["Cost", `${nats(scores.nll[index])} nats, ${bits(scores.nll[index])} bits`],
      ["Probability", percent(-scores.nll[index])],
      ["Rank", scores.rank[index].toLocaleString("en")],
      ["Entropy", `${nats(scores.entropy[index])} nats`],
    ];
    if (paired && model) {
      const difference = scores.nll[index] - scores.other[index];
      facts.push(["Difference", `${difference > 0 ? "+" : ""}${nats(difference)} nats`]);
    }
    const list = make("dl", {}, facts.flatMap(([name, value]) => [make("dt", {}, [name]), make("dd", {}, [value])]));
    const found = make("div", { className: `column ${model ? "second" : "first"}` }, [
      make("div", {}, [make("p", { className: "token" }, spelled(textOf(pane, index))), list]),
      alternatives(pane, index),
    ]);
    if (data.models.length > 1) found.prepend(make("p", { className: "who" }, [data.models[model]]));
    return found;
  }

  function alternatives({ scores, model, tokens }, index) {
    const list = make("ol", { ariaLabel: "Likeliest tokens" });
    const own = scores.rank[index] - 1;
    for (let place = 0; place < scores.count; place++) {
      const at = index * scores.count + place;
      const text = data.spelling[model][scores.alternatives[at]];
      const filled = make("span");
      filled.style.width = `${100 * Math.exp(scores.log_probs[at] / 100)}%`;
      const itself = place === own && text === tokens[index].textContent;
      const item = make("li", { className: itself ? "itself" : "" }, [
        make("span", { className: "token" }, spelled(text)),
        make("span", { className: "meter" }, [filled]),
        make("span", {}, [percent(scores.log_probs[at])]),
      ]);
      list.append(item);
    }
    return list;
  }

  function sentence({ pane, index }) {
    const { scores, model } = pane;
    const likeliest = data.spelling[model][scores.alternatives[index * scores.count]];
    const who = data.models.length > 1 ? `${data.models[model]}: ` : "";
    return (
      `${who}${aloud(textOf(pane, index))} costs ${nats(scores.nll[index])} nats, ${bits(scores.nll[index])} bits; ` +
      `rank ${scores.rank[index]}; entropy ${nats(scores.entropy[index])} nats; ` +
      `likeliest ${aloud(likeliest)}, ${percent(scores.log_probs[index * scores.count])}`
    );
  }

  function textOf(pane, index) {
    return pane.tokens[index].textContent || "\u25a1";
  }
}

function make(name, properties = {}, children = []) {
  const element = Object.assign(document.createElement(name), properties);
  element.append(...children);
  return element;
}

const MARKS = { " ": "\u2423", "\n": "\u21b5", "\r": "CR", "\t": "\u2192" };
const NAMES = { " ": "blank", "\n": "line end", "\r": "carriage return", "\t": "tab" };

// A token with its blanks made visible.
function spelled(text) {
  return text
    .split(/([ \n\r\t])/)
    .filter(Boolean)
    .map((piece) => (piece in MARKS ? make("span", { className: "mark-blank" }, [MARKS[piece]]) : piece));
}

function aloud(text) {
  return text.trim() ? `\u201c${text.trim()}\u201d` : [...text].map((letter) => NAMES[letter] ?? letter).join(", ");
}

function nats(hundredths) {
  return (hundredths / 100).toFixed(2).replace("-", "\u2212");
}

function bits(hundredths) {
  return (hundredths / 100 / Math.LN2).toFixed(2);
}

function percent(hundredths) {
  const share = 100 * Math.exp(hundredths / 100);
  return share < 0.01 ? "< 0.01 %" : `${share.toFixed(share < 1 ? 2 : 1)} %`;
}
