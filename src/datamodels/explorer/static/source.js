// Where data comes from: a server (HttpSource) or the data inlined in the page (FileSource, in file.js).
// The base class keeps what was asked for once; subclasses fetch it.

/** Arrays are read in the machine's order, which is little-endian wherever browsers run. */
export class Source {
  constructor(about) {
    this.about = about;
    this.kept = new Map();
  }

  once(key, make) {
    if (!this.kept.has(key)) {
      const made = make();
      this.kept.set(key, made);
      made.catch?.(() => this.kept.delete(key));
    }
    return this.kept.get(key);
  }

  attributionNumber(name) {
    return this.about.attributions.findIndex((a) => a.name === name);
  }

  /** The column of training examples that an attribution's models saw together; null where there is none. */
  togetherColumn(attribution) {
    return this.about.attributions[this.attributionNumber(attribution)].from_models ? this.about.train.together : null;
  }

  columnFacts(side, name) {
    return this.about[side].columns.find((column) => column.name === name);
  }

  /** The column that serves as the label, if there is one. */
  labelColumn(side) {
    return this.columnFacts(side, this.about[side].label);
  }

  /** The kind of array that a column comes in. */
  arrayOf(facts) {
    return facts.kind === "category" ? Int32Array : facts.wide ? Float64Array : Float32Array;
  }

  /** A function from an index to its label's text ("" when there is none). */
  async labels(side) {
    const facts = this.labelColumn(side);
    if (!facts) return () => "";
    const codes = await this.column(side, facts.name);
    return (i) => facts.categories[codes[i]] ?? "";
  }

  /** Which picture of which page shows example i; null when there is none. */
  tile(side, i) {
    const sprites = this.about.sprites?.[side];
    if (!sprites) return null;
    let first = 0;
    for (let page = 0; page < sprites.pages.length; page++) {
      if (i < first + sprites.pages[page]) {
        const at = i - first;
        return { url: this.spriteUrl(side, page), column: at % sprites.per_row, row: Math.floor(at / sprites.per_row), ...sprites };
      }
      first += sprites.pages[page];
    }
    return null;
  }
}

export class HttpSource extends Source {
  static async open() {
    const source = new HttpSource(null);
    source.about = await source.json("meta");
    return source;
  }

  get served() {
    return true;
  }

  async answer(path, body) {
    const options = body && { method: "POST", headers: { "content-type": "application/json" }, body: JSON.stringify(body) };
    const answer = await fetch(`api/${path}`, options || undefined);
    if (answer.ok) return answer;
    const text = await answer.text();
    let reason = text;
    try {
      reason = JSON.parse(text).detail ?? text;
    } catch {
      // the answer is plain text
    }
    throw new Error(typeof reason === "string" ? reason : JSON.stringify(reason));
  }

  async json(path, body) {
    return (await this.answer(path, body)).json();
  }

  async bytes(path, body) {
    return (await this.answer(path, body)).arrayBuffer();
  }

  column(side, name) {
    const columns = this.about[side].columns, k = columns.findIndex((c) => c.name === name);
    return this.once(`column/${side}/${k}`, async () => {
      const kind = this.arrayOf(columns[k]);
      return new kind(await this.bytes(`column/${side}/${k}`));
    });
  }

  map(name) {
    const k = this.about.maps.findIndex((m) => m.name === name);
    return this.once(`map/${k}`, async () => new Float32Array(await this.bytes(`map/${k}`)));
  }

  async weights(attribution, side, i) {
    const bytes = await this.bytes(`weights/${this.attributionNumber(attribution)}/${side}/${i}`);
    const size = new Int32Array(bytes, 0, 1)[0];
    return { indices: new Int32Array(bytes, 4, size), values: new Float32Array(bytes, 4 + 4 * size, size) };
  }

  details(side, i) {
    return this.json(`details/${side}/${i}`);
  }

  names(side) {
    return this.once(`names/${side}`, () => this.json(`names/${side}`));
  }

  groups() {
    return this.once("groups", () => this.json("groups"));
  }

  async whatif(attribution, examples, add) {
    const all = new Float32Array(await this.bytes("whatif", { attribution, examples: [...examples], add }));
    const t = this.about.n_targets, part = (k) => all.subarray(k * t, (k + 1) * t);
    const given = part(1).some((value) => !Number.isNaN(value));
    return { predicted: part(0), low: given ? part(1) : null, high: given ? part(2) : null };
  }

  agreement(a, b) {
    const path = `agreement/${this.attributionNumber(a)}/${this.attributionNumber(b)}`;
    return this.once(path, async () => {
      const both = new Float32Array(await this.bytes(path)), t = this.about.n_targets;
      return { overlap: both.subarray(0, t), cosine: both.subarray(t) };
    });
  }

  async verify(attribution, examples, add, runs) {
    return (await this.json("verify", { attribution, examples: [...examples], add, runs })).id;
  }

  verification(id) {
    return this.json(`verification/${encodeURIComponent(id)}`);
  }

  spriteUrl(side, page) {
    return new URL(`api/sprite/${side}/${page}.png`, document.baseURI).href;
  }
}
