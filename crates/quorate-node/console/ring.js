// The newest entries of something that goes on, oldest first, and never more than a number of them.

export class Ring {
  constructor(max) {
    this.max = max;
    this.entries = [];
    /** How many there were in all. */
    this.total = 0;
  }

  push(entry) {
    entry.number = this.total;
    this.total += 1;
    this.entries.push(entry);
    // A tenth at once, so that it is not moved with each one.
    if (this.entries.length > this.max * 1.1) this.entries.splice(0, this.entries.length - this.max);
  }

  /** The newest first, those that pass. */
  newest(passes = () => true, most = this.max) {
    const found = [];
    for (let at = this.entries.length - 1; at >= 0 && found.length < most; at -= 1) {
      if (passes(this.entries[at])) found.push(this.entries[at]);
    }
    return found;
  }
}
