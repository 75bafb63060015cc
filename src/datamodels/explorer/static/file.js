// The data inlined in an exported page. Base64 is decoded when first asked for; weights are transposed once.

import {Source} from "./source.js"

const ENOUGH = 0.8;  // the share of the weights asked for that a file must hold to answer a what-if

function decoded(text, kind) {
  const raw = atob(text), bytes = new Uint8Array(raw.length);
  for (let k = 0; k < raw.length; k++) bytes[k] = raw.charCodeAt(k);
  return new kind(bytes.buffer);
}

/** Strongest first. */
function sorted(indices, values) {
  const order = Array.from(values, (_, k) => k).sort((a, b) => Math.abs(values[b]) - Math.abs(values[a]));
  return { indices: Int32Array.from(order, (k) => indices[k]), values: Float32Array.from(order, (k) => values[k]) };
}

/** Compressed rows (targets) as compressed columns (train examples). */
function transposed(rows, n) {
  const { indptr, indices, values } = rows, start = new Int32Array(n + 1);
  for (const j of indices) start[j + 1]++;
  for (let j = 0; j < n; j++) start[j + 1] += start[j];
  const next = start.slice(0, n), of = new Int32Array(indices.length), out = new Float32Array(indices.length);
  for (let i = 0; i + 1 < indptr.length; i++) {
    for (let k = indptr[i]; k < indptr[i + 1]; k++) {
      const at = next[indices[k]]++;
      of[at] = i;
      out[at] = values[k];
    }
  }
  return { indptr: start, indices: of, values: out };
}

export class FileSource extends Source {
  constructor(data) {
    super(data.meta);
    this.data = data;
  }

  get served() {
    return false;
  }

  async column(side, name) {
    return this.once(`column/${side}/${name}`, () => decoded(this.data.columns[side][name], this.arrayOf(this.columnFacts(side, name))));
  }

  async map(name) {
    return this.once(`map/${name}`, () => decoded(this.data.maps[name], Float32Array));
  }

  rows(attribution) {
    return this.once(`rows/${attribution}`, () => {
      const given = this.data.weights[attribution];
      return {
        indptr: decoded(given.indptr, Int32Array),
        indices: decoded(given.indices, Int32Array),
        values: decoded(given.values, Float32Array),
      };
    });
  }

  columns(attribution) {
    return this.once(`columns/${attribution}`, () => transposed(this.rows(attribution), this.about.n_train));
  }

  facts(attribution) {
    return this.about.attributions[this.attributionNumber(attribution)];
  }

  /** All weights as integers, training example by training example, and each target's unit; null where they are not in the file. */
  rounded(attribution) {
    const { steps } = this.facts(attribution), given = this.data.weights[attribution];
    if (!steps) return null;
    return this.once(`rounded/${attribution}`, () => ({ values: decoded(given.rounded, steps > 127 ? Int16Array : Int8Array), units: decoded(given.units, Float32Array) }));
  }

  /** The weights of a training example: targets and values. */
  effects(attribution, j) {
    const whole = this.rounded(attribution), t = this.about.n_targets;
    if (!whole) {
      const { indptr, indices, values } = this.columns(attribution);
      return { indices: indices.subarray(indptr[j], indptr[j + 1]), values: values.subarray(indptr[j], indptr[j + 1]) };
    }
    const row = whole.values.subarray(j * t, (j + 1) * t), indices = Int32Array.from(row.keys()).filter((i) => row[i] !== 0);
    return { indices, values: Float32Array.from(indices, (i) => row[i] * whole.units[i]) };
  }

  async weights(attribution, side, i) {
    if (side === "train") {
      const { indices, values } = this.effects(attribution, i);
      return sorted(indices, values);
    }
    const { indptr, indices, values } = this.rows(attribution), kept = indices.subarray(indptr[i], indptr[i + 1]), exact = values.subarray(indptr[i], indptr[i + 1]);
    const whole = this.togetherColumn(attribution) ? this.rounded(attribution) : null;
    if (!whole) return sorted(kept, exact);
    const all = Float32Array.from({ length: this.about.n_train }, (_, j) => whole.values[j * this.about.n_targets + i] * whole.units[i]);
    kept.forEach((j, k) => (all[j] = exact[k]));
    const there = Int32Array.from(all.keys()).filter((j) => all[j] !== 0);
    return sorted(there, there.length ? Float32Array.from(there, (j) => all[j]) : new Float32Array(0));
  }

  async details(side, i) {
    return this.data.details?.[side]?.[i] ?? {};
  }

  async names(side) {
    return this.data.names?.[side] ?? { ids: null, texts: null };
  }

  async groups() {
    return this.data.groups ?? null;
  }

  /** Predicted changes; `kept` is the share of the examples' weights that the file holds, and too small a one is refused. */
  async whatif(attribution, examples, add) {
    const total = new Float64Array(this.about.n_targets), { cut, steps } = this.facts(attribution), given = this.data.weights[attribution];
    let held = 0;
    for (const j of examples) {
      const { indices, values } = this.effects(attribution, j);
      indices.forEach((i, k) => {
        total[i] += values[k];
        held += Math.abs(values[k]);
      });
    }
    const size = cut && !steps ? this.once(`size/${attribution}`, () => decoded(given.size, Float32Array)) : null;
    const all = size && examples.reduce((sum, j) => sum + size[j], 0), kept = all ? Math.min(1, held / all) : 1;
    if (kept < ENOUGH) return { predicted: null, low: null, high: null, kept };
    const predicted = Float32Array.from(total, (value) => (add ? value : -value || 0));
    if (!given.half_widths || (cut && !steps)) return { predicted, low: null, high: null, kept };
    const t = total.length, half = this.once(`half/${attribution}`, () => decoded(given.half_widths, Float32Array));
    const wide = total.map((value, i) => Math.sqrt(examples.length * half[i] ** 2 + (half[t + i] * value) ** 2));
    return { predicted, low: predicted.map((value, i) => value - wide[i]), high: predicted.map((value, i) => value + wide[i]), kept };
  }

  async agreement(a, b) {
    const pair = [a, b].map((name) => this.attributionNumber(name)).sort((i, j) => i - j).join("/"), t = this.about.n_targets;
    return this.once(`agreement/${pair}`, () => {
      const { indptr } = this.rows(a), itself = (k) => (indptr[(k % t) + 1] > indptr[k % t] ? 1 : NaN);
      const both = a === b ? Float32Array.from({ length: 2 * t }, (_, k) => itself(k)) : decoded(this.data.agreement[pair], Float32Array);
      return { overlap: both.subarray(0, t), cosine: both.subarray(t) };
    });
  }

  spriteUrl(side, page) {
    return this.data.sprites[side][page];
  }
}
