/** Keys of the keyboard, for all parts of the page. */

import { shortcuts, type Shortcut } from "./app";

const TYPED_INTO = "input:not([type=checkbox]):not([type=radio]):not([type=button]), textarea, select, [contenteditable=true]";
const PRESSED = "button, a[href], summary, input, [role=button], [role=tab], [role=option], [role=slider], [role=separator]";

/** How a key is named: as KeyboardEvent.key, with "Ctrl+" and, of keys without a sign, "Shift+". */
function named(event: KeyboardEvent): string[] {
  const ctrl = event.ctrlKey || event.metaKey ? "Ctrl+" : "";
  const shift = event.shiftKey ? "Shift+" : "";
  const key = event.key.length === 1 && !event.shiftKey ? event.key.toLowerCase() : event.key;
  const names = [`${ctrl}${shift}${key}`];
  if (event.shiftKey && key.length === 1) {
    names.push(`${ctrl}${shift}${key.toLowerCase()}`);
    if (key.toLowerCase() === key.toUpperCase()) names.push(`${ctrl}${key}`); // "?" needs Shift on some keyboards
  }
  return names;
}

function belongsElsewhere(event: KeyboardEvent): boolean {
  const target = event.target as Element | null;
  if (event.defaultPrevented || event.altKey || event.isComposing || !target?.closest) return true;
  if (document.querySelector("dialog[open]")) return true;
  if (target.closest(TYPED_INTO)) return event.key !== "Escape";
  return (event.key === "Enter" || event.key === " ") && target.closest(PRESSED) !== null;
}

function pressed(event: KeyboardEvent): void {
  if (belongsElsewhere(event)) return;
  const names = named(event);
  const all = shortcuts.filter((each) => names.includes(each.key));
  const one = all[0];
  if (!one) return;
  event.preventDefault();
  one.run();
}

let pointed = false; // whether the last deed was a pointer's

/** What was set by a pointer gives the keys back at once; by keys, one goes on setting it. */
function changed(event: Event): void {
  const target = event.target as Element | null;
  if (pointed && target instanceof HTMLElement && target.matches("select, input[type=range]")) target.blur();
}

export function startKeys(): void {
  document.addEventListener("pointerdown", () => (pointed = true), true);
  document.addEventListener("keydown", () => (pointed = false), true);
  document.addEventListener("change", changed);
  document.addEventListener("keydown", pressed);
}

const WORDS: Record<string, string> = {
  " ": "Space",
  ArrowLeft: "←",
  ArrowRight: "→",
  ArrowUp: "↑",
  ArrowDown: "↓",
  Escape: "Esc",
};

function parts(name: string): string[] {
  return name.endsWith("++") || name === "+" ? [...name.slice(0, -1).split("+"), "+"].filter(Boolean) : name.split("+");
}

/** Keys as they are written on keyboards; what all of them begin with is written once. */
export function Keys({ names }: { names: string[] }) {
  const [first, ...others] = names.map(parts);
  const before = first.slice(0, -1).join("+");
  const alike = others.every((one) => one.slice(0, -1).join("+") === before);
  const written = alike ? [...first, ...others.map((one) => one.at(-1) ?? "")] : [...first, ...others.flatMap((one) => ["or", ...one])];
  return (
    <span class="keys">
      {written.map((part, i) =>
        part === "or" ? (
          <span key={i} class="soft small">
            or
          </span>
        ) : (
          <kbd class="kbd" key={i}>
            {WORDS[part] ?? (part.length === 1 ? part.toUpperCase() : part)}
          </kbd>
        ),
      )}
    </span>
  );
}

const GROUPS: Shortcut["group"][] = ["Map", "Listen", "List", "Search", "Teach", "Page"];

/** Groups in the order of the page; keys that do the same stand together. */
export function grouped(): { group: string; lines: { words: string; keys: string[] }[] }[] {
  return GROUPS.map((group) => {
    const lines = new Map<string, string[]>();
    for (const one of shortcuts.filter((each) => each.group === group)) {
      lines.set(one.words, [...(lines.get(one.words) ?? []), one.key]);
    }
    return { group, lines: [...lines].map(([words, keys]) => ({ words, keys })) };
  }).filter((one) => one.lines.length > 0);
}
