// Waiting for a condition.

/** Repeats `probe` until it gives something; what it throws counts as nothing. `what()` says what did not come. */
export async function until(what, probe, within = 30_000) {
  const end = Date.now() + within;
  let last = '';
  while (Date.now() < end) {
    try {
      const found = await probe();
      if (found) return found;
    } catch (error) {
      last = ` (${error.cause?.message ?? error.message})`;
    }
    await new Promise((resolve) => setTimeout(resolve, 50));
  }
  throw new Error(`not within ${within / 1000} s: ${what()}${last}`);
}
