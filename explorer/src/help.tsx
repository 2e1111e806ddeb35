/** The list of keys. */

import { signal } from "@preact/signals";
import { useEffect, useRef } from "preact/hooks";
import { shortcuts, type Shortcut } from "./app";
import { CloseIcon } from "./icons";
import { grouped, Keys } from "./keys";

export const helpOpen = signal(false);

/** Keys that the map takes while it has the focus. */
const ON_MAP: Shortcut[] = [
  { key: "Enter", words: "Open the point nearest to the middle (map has the focus)", group: "Map", run: () => {} },
  { key: "j", words: "Walk to the next nearby point; N too while no class is taught (map has the focus)", group: "Map", run: () => {} },
  { key: "k", words: "Walk back; P too (map has the focus)", group: "Map", run: () => {} },
  { key: "x", words: "Take the open point into the selection, or out (map has the focus)", group: "Map", run: () => {} },
  { key: "Ctrl+a", words: "Select all points that are shown (map has the focus)", group: "Map", run: () => {} },
];

export function Help() {
  const dialog = useRef<HTMLDialogElement>(null);
  const open = helpOpen.value;
  useEffect(() => {
    if (open && !dialog.current?.open) dialog.current?.showModal();
    if (!open && dialog.current?.open) dialog.current.close();
  }, [open]);
  return (
    <dialog
      ref={dialog}
      class="help"
      data-testid="help-dialog"
      aria-labelledby="help-title"
      onClose={() => (helpOpen.value = false)}
      onClick={(event) => event.target === dialog.current && (helpOpen.value = false)}
    >
      <div class="help-inside">
        <header>
          <h2 id="help-title">Keys</h2>
          <button class="icon-button quiet" aria-label="Close" data-testid="help-close" onClick={() => (helpOpen.value = false)}>
            <CloseIcon />
          </button>
        </header>
        {open && (
          <div class="help-groups">
            {[...grouped([...shortcuts, ...ON_MAP])].map(([group, keys]) => (
              <section key={group}>
                <h3>{group}</h3>
                <dl>
                  {keys.map((one) => (
                    <div key={one.key + one.words}>
                      <dt>
                        <Keys name={one.key} />
                      </dt>
                      <dd>{one.words}</dd>
                    </div>
                  ))}
                </dl>
              </section>
            ))}
          </div>
        )}
      </div>
    </dialog>
  );
}
