/** What the page says of what it did, and of what went wrong. */

import { useEffect } from "preact/hooks";
import { app } from "./app";
import { CloseIcon, DoneIcon, WarnIcon } from "./icons";
import { cutOff } from "./live";

const STAYS = 6000; // ms, of what went well

export function Messages() {
  const message = app.message.value;
  useEffect(() => {
    if (message?.kind !== "done") return;
    const timer = setTimeout(() => {
      if (app.message.peek() === message) app.message.value = null;
    }, STAYS);
    return () => clearTimeout(timer);
  }, [message]);
  return (
    <div class="messages" role="status" aria-live="polite">
      {message && (
        <div class={`message ${message.kind}`} data-testid="message" data-kind={message.kind}>
          {message.kind === "error" ? <WarnIcon /> : <DoneIcon />}
          <p>{message.words}</p>
          <button class="icon-button quiet" aria-label="Close this message" data-testid="message-close" onClick={() => (app.message.value = null)}>
            <CloseIcon />
          </button>
        </div>
      )}
    </div>
  );
}

/** Says that the server is gone, for as long as it is. */
export function CutOff() {
  return (
    <div role="alert">
      {cutOff.value && (
        <p class="cut-off" data-testid="cut-off">
          <WarnIcon />
          {cutOff.value}
        </p>
      )}
    </div>
  );
}
