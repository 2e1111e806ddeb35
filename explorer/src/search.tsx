/** Stands in for the panel until it is written. */

export function Search() {
  return <p class="nothing">Search</p>;
}
