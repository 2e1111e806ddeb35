/** Dark and light: as the system has it until the user chooses; kept for the next visit. */

import { effect } from "@preact/signals";
import { app } from "./app";
import { rgb, type Rgb } from "./palette";

const KEPT = "penult.theme";

/** A value that this browser keeps for the page; null where it keeps none. */
export function kept(name: string): string | null {
  try {
    return localStorage.getItem(name);
  } catch {
    return null; // the browser allows no storage
  }
}

export function keep(name: string, value: string): void {
  try {
    localStorage.setItem(name, value);
  } catch {
    // the browser allows no storage
  }
}

export function startTheme(): void {
  const dark = matchMedia("(prefers-color-scheme: dark)");
  const chosen = kept(KEPT);
  app.theme.value = chosen === "dark" || chosen === "light" ? chosen : dark.matches ? "dark" : "light";
  dark.addEventListener("change", () => {
    if (!kept(KEPT)) app.theme.value = dark.matches ? "dark" : "light";
  });
  effect(() => {
    document.documentElement.dataset.theme = app.theme.value;
  });
}

export function switchTheme(): void {
  app.theme.value = app.theme.value === "dark" ? "light" : "dark";
  keep(KEPT, app.theme.value);
}

/** The value of a custom property of style.css; ask again when `app.theme` changes. */
export function token(name: string): string {
  return getComputedStyle(document.documentElement).getPropertyValue(name).trim();
}

export function tokenRgb(name: string): Rgb {
  return rgb(token(name));
}

export function calm(): boolean {
  return matchMedia("(prefers-reduced-motion: reduce)").matches;
}
