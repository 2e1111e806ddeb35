/** Stands in for the panel until it is written. */

export function Teach() {
  return <p class="nothing">Teach</p>;
}
