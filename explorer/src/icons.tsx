/** Small pictures of controls; their words stand beside them or in a label. */

import type { ComponentChildren } from "preact";

function icon(lines: ComponentChildren) {
  return () => (
    <svg viewBox="0 0 16 16" width="16" height="16" fill="none" stroke="currentColor" stroke-width="1.4" stroke-linecap="round" stroke-linejoin="round" aria-hidden="true">
      {lines}
    </svg>
  );
}

export const FitIcon = icon(<path d="M2.5 6V2.5H6M10 2.5h3.5V6M13.5 10v3.5H10M6 13.5H2.5V10" />);
export const LassoIcon = icon(
  <>
    <ellipse cx="8" cy="6.2" rx="5.7" ry="3.9" stroke-dasharray="2.4 1.9" />
    <path d="M4.6 9.4c-1.3.8-.9 2.3.4 2.2 1.4-.1 1.3-1.8.1-1.8M5.9 11.2c.3 1-.2 2-1 2.6" />
  </>,
);
export const BoxIcon = icon(<rect x="2.5" y="3.5" width="11" height="9" rx="1" stroke-dasharray="2.4 1.9" />);
export const PlusIcon = icon(<path d="M8 3v10M3 8h10" />);
export const MinusIcon = icon(<path d="M3 8h10" />);
export const SunIcon = icon(
  <>
    <circle cx="8" cy="8" r="2.8" />
    <path d="M8 1.5v1.3M8 13.2v1.3M1.5 8h1.3M13.2 8h1.3M3.4 3.4l.9.9M11.7 11.7l.9.9M12.6 3.4l-.9.9M4.3 11.7l-.9.9" />
  </>,
);
export const MoonIcon = icon(<path d="M13 9.6A5.6 5.6 0 0 1 6.4 3 5.6 5.6 0 1 0 13 9.6z" />);
export const HelpIcon = icon(
  <>
    <circle cx="8" cy="8" r="6" />
    <path d="M6.2 6.3c0-1 .8-1.7 1.8-1.7s1.8.6 1.8 1.6c0 1.3-1.8 1.4-1.8 2.7M8 11.2v.1" />
  </>,
);
export const FindIcon = icon(
  <>
    <circle cx="7" cy="7" r="4.2" />
    <path d="M10.2 10.2l3.3 3.3" />
  </>,
);
export const CloseIcon = icon(<path d="M4 4l8 8M12 4l-8 8" />);
export const PenIcon = icon(<path d="M3 13l.6-2.6 7.2-7.2 2 2-7.2 7.2L3 13z" />);
export const ListIcon = icon(<path d="M2.5 4h11M2.5 8h11M2.5 12h11" />);
export const DownIcon = icon(<path d="M4 6.5l4 4 4-4" />);
export const UpIcon = icon(<path d="M4 9.5l4-4 4 4" />);
export const WarnIcon = icon(<path d="M8 2.5l6 10.5H2L8 2.5zM8 6.6v3M8 11.4v.1" />);
export const DoneIcon = icon(<path d="M3 8.5l3.2 3.2L13 5" />);
