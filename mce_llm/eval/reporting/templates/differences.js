// Where two answers differ, word by word.
"use strict";
const LARGEST_TABLE = 4e6; // cells in which two answers are aligned; beyond, all between common ends counts as different

const words = (text) => text.match(/\s+|[\p{L}\p{N}_.,]+|[^\s]/gu) ?? [];

// Which words of x and of y are not in their longest common subsequence.
const differing = (x, y) => {
  let start = 0;
  while (start < x.length && start < y.length && x[start] === y[start]) start++;
  let [endX, endY] = [x.length, y.length];
  while (endX > start && endY > start && x[endX - 1] === y[endY - 1]) { endX--; endY--; }
  const inX = x.map((_, k) => k >= start && k < endX);
  const inY = y.map((_, k) => k >= start && k < endY);
  const [n, m] = [endX - start, endY - start];
  if (n * m === 0 || n * m > LARGEST_TABLE) return [inX, inY];
  const width = m + 1;
  const longest = new Uint16Array((n + 1) * width);
  for (let i = n - 1; i >= 0; i--) {
    for (let j = m - 1; j >= 0; j--) {
      longest[i * width + j] = x[start + i] === y[start + j]
        ? longest[(i + 1) * width + j + 1] + 1
        : Math.max(longest[(i + 1) * width + j], longest[i * width + j + 1]);
    }
  }
  for (let i = 0, j = 0; i < n && j < m;) {
    if (x[start + i] === y[start + j]) { inX[start + i++] = false; inY[start + j++] = false; }
    else if (longest[(i + 1) * width + j] >= longest[i * width + j + 1]) i++;
    else j++;
  }
  return [inX, inY];
};

// Appends words to an element, those that are marked inside <mark>, with the spaces between them.
const withMarks = (target, parts, marked) => {
  let [text, within] = ["", false];
  const flush = () => {
    const end = within ? text.trimEnd().length : 0; // a space after the last marked word is none of it
    if (end) target.append(make("mark", "", text.slice(0, end)));
    target.append(text.slice(end));
    text = "";
  };
  parts.forEach((part, k) => {
    if (marked[k] !== within && part.trim()) { flush(); within = marked[k]; }
    text += part;
  });
  flush();
};
