// The data inlined in an exported page. Base64 is decoded when first asked for; weights are transposed once.

import {Source} from "./source.js"

const TOP = 20;

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
    const kind = this.columnFacts(side, name).kind === "category" ? Int32Array : Float32Array;
    return this.once(`column/${side}/${name}`, () => decoded(this.data.columns[side][name], kind));
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

  async weights(attribution, side, i) {
    const { indptr, indices, values } = side === "targets" ? this.rows(attribution) : this.columns(attribution);
    return sorted(indices.subarray(indptr[i], indptr[i + 1]), values.subarray(indptr[i], indptr[i + 1]));
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

  async whatif(attribution, examples, add) {
    const { indptr, indices, values } = this.columns(attribution), total = new Float64Array(this.about.n_targets);
    for (const j of examples) for (let k = indptr[j]; k < indptr[j + 1]; k++) total[indices[k]] += values[k];
    return { predicted: Float32Array.from(total, (value) => (add ? value : -value || 0)), low: null, high: null };
  }

  async agreement(a, b) {
    return this.once(`agreement/${a}/${b}`, () => {
      const t = this.about.n_targets, overlap = new Float32Array(t), cosine = new Float32Array(t);
      const left = this.rows(a), right = this.rows(b), place = new Float64Array(this.about.n_train);
      const part = (rows, i) => sorted(
        rows.indices.subarray(rows.indptr[i], rows.indptr[i + 1]), rows.values.subarray(rows.indptr[i], rows.indptr[i + 1]));
      const norm = (values) => Math.hypot(...values);
      for (let i = 0; i < t; i++) {
        const one = part(left, i), two = part(right, i), first = new Set(one.indices.subarray(0, TOP));
        const size = Math.min(TOP, Math.max(one.indices.length, two.indices.length));
        overlap[i] = size ? two.indices.subarray(0, TOP).filter((j) => first.has(j)).length / size : NaN;
        one.indices.forEach((j, k) => (place[j] = one.values[k]));
        cosine[i] = two.indices.reduce((sum, j, k) => sum + place[j] * two.values[k], 0) / (norm(one.values) * norm(two.values));
        one.indices.forEach((j) => (place[j] = 0));
      }
      return { overlap, cosine };
    });
  }

  spriteUrl(side, page) {
    return this.data.sprites[side][page];
  }
}
