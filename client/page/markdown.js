// Markdown of a model's answer as DOM nodes. Text only ever goes in as text, and no element but those below
// is made: what a model writes cannot become markup, script, style, image or form, whatever it holds.

const BLOCK = /^(?:(#{1,6})\s+(.*)|(```|~~~)\s*([\w+#.-]*).*|\s*[-*+]\s+(.*)|\s*(\d{1,9})[.)]\s+(.*)|>\s?(.*)|\s*([-*_])(?:\s*\9){2,}\s*)$/;
const INLINE = /(`+)(.+?)\1(?!`)|\*\*(\S(?:.*?\S)?)\*\*|__(\S(?:.*?\S)?)__|\*(\S(?:[^*]*\S)?)\*|!?\[([^\]\n]*)\]\(([^()\s]+)\)/s;
const LONGEST_INLINE = 4000; // characters; a longer paragraph is shown as it is

export function markdown(text) {
  const root = document.createDocumentFragment();
  const lines = text.replace(/\r\n?/g, "\n").split("\n");
  let paragraph = [];

  const flush = () => {
    if (paragraph.length) root.append(element("p", ...inline(paragraph.join("\n"))));
    paragraph = [];
  };

  for (let i = 0; i < lines.length; i += 1) {
    const table = tableAt(lines, i);
    const found = table ? null : BLOCK.exec(lines[i]);
    if (!lines[i].trim()) {
      flush();
    } else if (table) {
      flush();
      root.append(table.node);
      i = table.last;
    } else if (!found) {
      paragraph.push(lines[i]);
    } else {
      const [, hashes, heading, fence, language, bullet, number, numbered, quote, rule] = found;
      flush();
      if (hashes) root.append(element(`h${Math.min(6, hashes.length + 2)}`, ...inline(heading)));
      else if (fence) i = code(root, lines, i, fence, language);
      else if (rule) root.append(element("hr"));
      else if (quote !== undefined) root.append(element("blockquote", ...inline(quote)));
      else item(root, number ? "ol" : "ul", number, bullet ?? numbered);
    }
  }
  flush();
  return root;
}

function code(root, lines, start, fence, language) {
  let end = start + 1;
  while (end < lines.length && !lines[end].startsWith(fence)) end += 1;
  const block = element("pre", element("code", lines.slice(start + 1, end).join("\n")));
  if (language) block.dataset.language = language;
  block.tabIndex = 0; // it may scroll
  root.append(block);
  return end;
}

function item(root, kind, number, text) {
  let list = root.lastChild;
  if (list?.nodeName !== kind.toUpperCase()) {
    list = root.appendChild(element(kind));
    if (number && number !== "1") list.start = Number(number);
  }
  list.append(element("li", ...inline(text)));
}

function tableAt(lines, start) {
  if (!lines[start].includes("|") || !/^\s*\|?\s*:?-+:?\s*(\|\s*:?-+:?\s*)*\|?\s*$/.test(lines[start + 1] ?? "")) return null;
  if (!lines[start + 1].includes("|")) return null;
  const cells = (line) => line.trim().replace(/^\||\|$/g, "").split("|").map((cell) => cell.trim());
  let last = start + 1;
  while (lines[last + 1]?.includes("|")) last += 1;
  const row = (line, kind) => element("tr", ...cells(line).map((cell) => element(kind, ...inline(cell))));
  const rows = lines.slice(start + 2, last + 1).map((line) => row(line, "td"));
  return { node: element("table", element("thead", row(lines[start], "th")), element("tbody", ...rows)), last };
}

function inline(text) {
  const nodes = [];
  let rest = text.length > LONGEST_INLINE ? "" : text;
  if (!rest) return [text];
  for (let found = INLINE.exec(rest); found; found = INLINE.exec(rest)) {
    const [whole, , literal, bold, alsoBold, slanted, label, target] = found;
    if (found.index) nodes.push(rest.slice(0, found.index));
    if (literal !== undefined) nodes.push(element("code", literal));
    else if (bold ?? alsoBold) nodes.push(element("strong", ...inline(bold ?? alsoBold)));
    else if (slanted) nodes.push(element("em", ...inline(slanted)));
    else nodes.push(link(whole, label, target));
    rest = rest.slice(found.index + whole.length);
  }
  if (rest) nodes.push(rest);
  return nodes;
}

function link(whole, label, target) {
  // an image stays text: loading it would tell its host what was read here, and when
  if (whole.startsWith("!") || !/^https?:\/\//i.test(target)) return whole;
  const anchor = element("a", label || target);
  anchor.href = target;
  anchor.title = target; // where it leads, whatever it says
  anchor.target = "_blank";
  anchor.rel = "noopener noreferrer nofollow";
  return anchor;
}

function element(name, ...content) {
  const made = document.createElement(name);
  made.append(...content);
  return made;
}
