// The bar of a run whose images wait as sketches: how many are kept, and what becomes of them.

export class SketchBar {
  #run;
  #element;

  /** `leave` moves the focus on where the button that had it is gone. */
  constructor(run, element, leave) {
    this.#run = run;
    this.#element = element;
    element.addEventListener("click", ({ target }) => {
      const button = target.closest("button");
      this.#act(button?.dataset.action);
      if (button && !button.checkVisibility()) leave();
    });
  }

  show() {
    const { sketches, undoable } = this.#run;
    this.#element.hidden = !sketches.length;
    if (!sketches.length) return;
    const kept = sketches.filter((image) => image.kept).length;
    const time = new Date(Math.min(...sketches.map(({ until }) => until))).toLocaleTimeString([], { timeStyle: "short" });
    const says = kept ? `${kept} of ${sketches.length} kept` : "Tap the sketches to keep";
    this.#element.querySelector("p").textContent = `${says} · they wait until ${time}`;
    Object.assign(this.#button("finish"), { textContent: kept ? `Finish ${kept}` : "Finish", disabled: !kept });
    this.#button("undo").disabled = !undoable;
  }

  #act(action) {
    const run = this.#run;
    switch (action) {
      case "undo": return run.undo();
      case "finish": return void run.finish(run.sketches.filter((image) => image.kept));
      case "finish-all": return void run.finish(run.sketches);
    }
  }

  #button(action) {
    return this.#element.querySelector(`[data-action=${action}]`);
  }
}
