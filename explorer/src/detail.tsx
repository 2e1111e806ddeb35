/** Stands in for the panel until it is written. */

export function Detail() {
  return <p class="nothing">Detail</p>;
}
