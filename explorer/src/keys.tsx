/** Keys of the keyboard, for all parts of the page. */

import { shortcuts, type Shortcut } from "./app";

const TYPED_INTO = "input:not([type=checkbox]):not([type=radio]):not([type=button]), textarea, select, [contenteditable=true]";
const PRESSED = "button, a[href], summary, input, [role=button], [role=tab], [role=option], [role=slider], [role=separator]";
const PANELS = ".side, .dock, .detail-side"; // where a key that the map has too is theirs

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
  const inPanel = (event.target as Element).closest(PANELS) !== null;
  const one = all.find((each) => (each.group === "Map") !== inPanel) ?? all[0];
  if (!one) return;
  event.preventDefault();
  one.run();
}

export function startKeys(): void {
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

/** A key as it is written on keyboards. */
export function Keys({ name }: { name: string }) {
  const parts = name === "+" ? ["+"] : name.split("+").filter(Boolean);
  return (
    <span class="keys">
      {parts.map((part) => (
        <kbd class="kbd" key={part}>
          {WORDS[part] ?? (part.length === 1 ? part.toUpperCase() : part)}
        </kbd>
      ))}
    </span>
  );
}

export function grouped(all: Shortcut[]): Map<Shortcut["group"], Shortcut[]> {
  const groups = new Map<Shortcut["group"], Shortcut[]>();
  for (const one of all) groups.set(one.group, [...(groups.get(one.group) ?? []), one]);
  return groups;
}
