/** Stands in for the panel until it is written. */

export function Results() {
  return <p class="nothing">Results</p>;
}
