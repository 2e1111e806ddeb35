/** The list of keys. */

import { signal } from "@preact/signals";
import { useEffect, useRef } from "preact/hooks";
import { CloseIcon } from "./icons";
import { grouped, Keys } from "./keys";

export const helpOpen = signal(false);

/** Keys that the map takes while it has the focus. */
const ON_MAP = {
  group: "On the map, while it has the focus",
  lines: [
    { keys: ["Enter"], words: "Open the point nearest to the middle" },
    { keys: ["j", "k"], words: "Walk on to nearby points, and back; N and P too while no class is taught" },
    { keys: ["x"], words: "Take the open point into the selection, or out" },
    { keys: ["Ctrl+a"], words: "Select all points that are shown" },
  ],
};

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
            {[...grouped(), ON_MAP].map(({ group, lines }) => (
              <section key={group}>
                <h3>{group}</h3>
                <dl>
                  {lines.map(({ keys, words }) => (
                    <div key={words}>
                      <dt>
                        <Keys names={keys} />
                      </dt>
                      <dd>{words}</dd>
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
