// Bundle the page into ../src/penult/explorer/page (or the folder that is named).

import { build } from "esbuild";
import { copyFile, mkdir, readdir, readFile, rm, writeFile } from "node:fs/promises";
import { dirname, join, resolve } from "node:path";
import { fileURLToPath } from "node:url";

const here = dirname(fileURLToPath(import.meta.url));
const page = resolve(process.argv[2] ?? join(here, "../src/penult/explorer/page"));

/** Names of the packages that a bundle holds, from esbuild's list of its inputs. */
function packages(inputs) {
  const names = Object.keys(inputs).map((path) => /.*node_modules\/((?:@[^/]+\/)?[^/]+)\//.exec(path)?.[1]);
  return [...new Set(names.filter(Boolean))].sort();
}

/** One text with the licence of each bundled package. */
async function licences(names) {
  const parts = [];
  for (const name of names) {
    const folder = join(here, "node_modules", name);
    const { version, license } = JSON.parse(await readFile(join(folder, "package.json"), "utf8"));
    const file = (await readdir(folder)).find((entry) => /^licen[cs]e/i.test(entry));
    if (!file) throw new Error(`${name} comes without the text of its licence`);
    const text = await readFile(join(folder, file), "utf8");
    parts.push(`${name} ${version} (${license})\n\n${text.trim()}\n`);
  }
  return parts.join(`\n${"-".repeat(72)}\n\n`);
}

await rm(page, { recursive: true, force: true });
await mkdir(page, { recursive: true });
const { metafile } = await build({
  absWorkingDir: here,
  entryPoints: { main: "src/main.tsx" },
  outdir: page,
  bundle: true,
  minify: true,
  sourcemap: false,
  legalComments: "none",
  charset: "utf8",
  format: "iife",
  target: ["es2022", "chrome112", "firefox115", "safari16.4"],
  jsx: "automatic",
  jsxImportSource: "preact",
  metafile: true,
  logLevel: "warning",
});
await copyFile(join(here, "index.html"), join(page, "index.html"));
await writeFile(join(page, "LICENSES.txt"), await licences(packages(metafile.inputs)));
