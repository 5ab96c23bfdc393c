/* What the page shows at this moment. Views say which values they depend on, and are called once a frame at most. */

export class State {
  constructor(values) {
    this.values = values;
    this.watchers = [];
    this.changed = new Set(Object.keys(values));
    this.isScheduled = false;
  }

  get(name) {
    return this.values[name];
  }

  set(changes) {
    Object.assign(this.values, changes);
    Object.keys(changes).forEach((name) => this.changed.add(name));
    if (this.isScheduled) return;
    this.isScheduled = true;
    requestAnimationFrame(() => this.settle());
  }

  /* Call a function in the frame after any of these values has changed, in the order of these calls. */
  watch(names, act) {
    this.watchers.push({ names, act });
  }

  /* Keep a value that is computed from others up to date. */
  derive(name, names, compute) {
    this.watch(names, (changed) => {
      this.values[name] = compute();
      changed.add(name);
    });
  }

  settle() {
    const { changed } = this;
    this.changed = new Set(); // of what is set meanwhile, for the next frame
    this.isScheduled = false;
    for (const { names, act } of this.watchers) if (names.some((name) => changed.has(name))) act(changed);
  }
}
