// A body's arithmetic: identity, pose, surface, measures and keypoints. No page is needed: Node runs it too.
"use strict";

/** Read a page's data: JSON in which {packed: [kind, start, count]} stands for numbers of the deflated block. */
async function unpack(text, block) {
  const deflated = Uint8Array.from(atob(block), char => char.charCodeAt(0));
  const stream = new Blob([deflated]).stream().pipeThrough(new DecompressionStream("deflate"));
  const raw = new Uint8Array(await new Response(stream).arrayBuffer());
  const kinds = {u1: Uint8Array, i2: Int16Array, u2: Uint16Array, u4: Uint32Array, f4: Float32Array};
  return JSON.parse(text, (_, value) => {
    if (!value || !value.packed) return value;
    const [kind, start, count] = value.packed, width = +kind[1], bytes = new Uint8Array(count * width);
    for (let b = 0; b < width; b++)  // the first bytes of all numbers come first: they deflate better
      for (let i = 0; i < count; i++) bytes[i * width + b] = raw[start + b * count + i];
    return new kinds[kind](bytes.buffer);
  });
}

/** Rotation matrix, by rows, of an axis-angle vector (Rodrigues). */
function rotation(x, y, z) {
  const angle = Math.hypot(x, y, z), s = angle > 1e-9 ? Math.sin(angle) / angle : 1;
  const half = Math.sin(angle / 2), c = angle > 1e-9 ? 2 * half * half / (angle * angle) : 0.5;
  return [1 - c * (y * y + z * z), c * x * y - s * z, c * x * z + s * y,
          c * x * y + s * z, 1 - c * (x * x + z * z), c * y * z - s * x,
          c * x * z - s * y, c * y * z + s * x, 1 - c * (x * x + y * y)];
}

/** Value at x of a line through points of ascending xs, constant beyond the ends. */
function interpolate(x, xs, ys) {
  let i = 1;
  while (i < xs.length - 1 && xs[i] < x) i++;
  const share = Math.min(Math.max((x - xs[i - 1]) / (xs[i] - xs[i - 1]), 0), 1);
  return ys[i - 1] + share * (ys[i] - ys[i - 1]);
}

/** Unit, area-weighted normals of the vertices. */
function vertexNormals(vertices, faces) {
  const normals = new Float32Array(vertices.length);
  for (let f = 0; f < faces.length; f += 3) {
    const a = 3 * faces[f], b = 3 * faces[f + 1], c = 3 * faces[f + 2];
    const ux = vertices[b] - vertices[a], uy = vertices[b + 1] - vertices[a + 1], uz = vertices[b + 2] - vertices[a + 2];
    const vx = vertices[c] - vertices[a], vy = vertices[c + 1] - vertices[a + 1], vz = vertices[c + 2] - vertices[a + 2];
    const x = uy * vz - uz * vy, y = uz * vx - ux * vz, z = ux * vy - uy * vx;
    for (const i of [a, b, c]) normals[i] += x, normals[i + 1] += y, normals[i + 2] += z;
  }
  for (let i = 0; i < normals.length; i += 3) {
    const length = Math.hypot(normals[i], normals[i + 1], normals[i + 2]) || 1;
    normals[i] /= length, normals[i + 1] /= length, normals[i + 2] /= length;
  }
  return normals;
}

class Body {
  constructor(about) {
    Object.assign(this, about);
    this.count = this.directions.values.length / this.directions.steps.length;
    if (!this.correctives) return;
    const {values, steps} = this.correctives;  // most are zero: keep the others
    this.sparse = steps.map((step, p) => {
      const part = values.subarray(p * this.count, (p + 1) * this.count), used = [];
      part.forEach((value, i) => value && used.push(i));
      return {at: Uint32Array.from(used), by: Float32Array.from(used, i => part[i] * step)};
    });
    delete this.correctives;
  }

  /** 1, betas, and the shares of the age templates: piecewise linear, extrapolated beyond the ends. */
  coefficients(betas, age) {
    const knots = [0, ...this.anchors].sort((a, b) => a - b), shares = new Array(this.anchors.length).fill(0);
    let i = 0;
    while (i < knots.length - 2 && age >= knots[i + 1]) i++;
    const share = (age - knots[i]) / (knots[i + 1] - knots[i]);
    for (const [knot, part] of [[knots[i], 1 - share], [knots[i + 1], share]]) {
      const slot = this.anchors.indexOf(knot);
      if (slot >= 0) shares[slot] = part;
    }
    return [1, ...betas, ...shares];
  }

  /** Rest surface and rest joints of an identity. */
  shape(betas, age) {
    const coefficients = this.coefficients(betas, age), {values, steps} = this.directions;
    const rest = new Float32Array(this.count), joints = new Float64Array(3 * this.parents.length);
    coefficients.forEach((coefficient, c) => {
      const factor = coefficient * steps[c];
      if (factor) for (let i = 0, at = c * this.count; i < rest.length; i++, at++) rest[i] += factor * values[at];
      for (let i = 0; i < joints.length; i++) joints[i] += coefficient * this.jointDirections[c * joints.length + i];
    });
    return {rest, joints, correctiveScale: 1 + age * (this.infantCorrectiveScale - 1)};
  }

  /** Surface and joints of a pose: an axis-angle vector per joint, flat. */
  pose({rest, joints, correctiveScale}, angles) {
    const J = this.parents.length, transforms = new Float64Array(12 * J), posed = new Float64Array(3 * J);
    let surface = rest;
    for (let j = 0; j < J; j++) {
      const R = rotation(angles[3 * j], angles[3 * j + 1], angles[3 * j + 2]), parent = this.parents[j];
      if (j && this.sparse) {
        if (surface === rest) surface = rest.slice();
        R.forEach((entry, k) => {
          const by = correctiveScale * (entry - (k % 4 ? 0 : 1)), part = this.sparse[9 * (j - 1) + k];
          if (Math.abs(by) > 1e-9) for (let i = 0; i < part.at.length; i++) surface[part.at[i]] += by * part.by[i];
        });
      }
      for (let r = 0; r < 3; r++) {  // world rotation by rows, then the place of the joint
        const P = parent < 0 ? null : transforms.subarray(12 * parent + 4 * r, 12 * parent + 4 * r + 3);
        const T = transforms.subarray(12 * j + 4 * r, 12 * j + 4 * r + 4);
        for (let c = 0; c < 3; c++) T[c] = P ? P[0] * R[c] + P[1] * R[3 + c] + P[2] * R[6 + c] : R[3 * r + c];
        let place = joints[3 * j + r];
        if (P) {
          place = posed[3 * parent + r];
          for (let c = 0; c < 3; c++) place += P[c] * (joints[3 * j + c] - joints[3 * parent + c]);
        }
        posed[3 * j + r] = place;
        T[3] = place - T[0] * joints[3 * j] - T[1] * joints[3 * j + 1] - T[2] * joints[3 * j + 2];
      }
    }
    return {vertices: this.skin(surface, transforms), joints: posed};
  }

  skin(surface, transforms) {
    const vertices = new Float32Array(surface.length), {width, joints, weights} = this.skinning;
    for (let i = 0, at = 0; i < surface.length; i += 3) {
      const x = surface[i], y = surface[i + 1], z = surface[i + 2];
      for (let k = 0; k < width; k++, at++) {
        const w = weights[at], T = 12 * joints[at];
        if (!w) continue;
        for (let r = 0; r < 3; r++) {
          const row = T + 4 * r;
          vertices[i + r] += w * (transforms[row] * x + transforms[row + 1] * y + transforms[row + 2] * z + transforms[row + 3]);
        }
      }
    }
    return vertices;
  }

  /** Points of a layout on a posed body, flat; edges and names are the layout's. */
  keypoints(layout, vertices, joints) {
    const points = [];
    layout.joints.forEach((of, k) => {
      for (let c = 0; c < 3; c++) {
        let sum = 0;
        if (of[0] >= 0) of.forEach(j => { sum += joints[3 * j + c] / of.length; });
        else for (let i = layout.starts[k]; i < layout.starts[k + 1]; i++) sum += layout.weights[i] * vertices[3 * layout.vertices[i] + c];
        points.push(sum);
      }
    });
    return points;
  }

  /** Every measure of a rest surface by name [m]. */
  measure(rest) {
    const point = row => [0, 1, 2].map(c => row.ids.reduce((sum, v, i) => sum + row.weights[i] * rest[3 * v + c], 0));
    let low = Infinity, high = -Infinity;
    for (let i = 1; i < rest.length; i += 3) low = Math.min(low, rest[i]), high = Math.max(high, rest[i]);
    return Object.fromEntries(this.measures.map(({name, kind, ends, rows, faces, tape}) => {
      const points = rows.map(point);
      if (kind === "height") {
        const [top, bottom] = ends.map((end, i) => end === "top" ? high : end === "ground" ? low : points[i][1]);
        return [name, top - bottom];
      }
      if (kind === "distance")
        return [name, points.slice(1).reduce((sum, p, i) => sum + Math.hypot(...p.map((x, c) => x - points[i][c])), 0)];
      const normal = points.length > 1 ? points[2].map((x, c) => x - points[1][c]) : [0, 1, 0];
      return [name, girth(rest, faces, points[0], normal, tape)];
    }));
  }
}

/** Length of a plane's section of triangles, or of a tape around it: the perimeter of its convex hull. */
function girth(vertices, faces, origin, normal, tape) {
  const length = Math.hypot(...normal), n = normal.map(x => x / length), starts = [];
  const height = i => (vertices[i] - origin[0]) * n[0] + (vertices[i + 1] - origin[1]) * n[1] + (vertices[i + 2] - origin[2]) * n[2];
  const crossing = (i, j, a, b) => [0, 1, 2].map(c => vertices[i + c] + a / (a - b) * (vertices[j + c] - vertices[i + c]));
  let outline = 0;
  for (let f = 0; f < faces.length; f += 3) {
    const i = 3 * faces[f], j = 3 * faces[f + 1], k = 3 * faces[f + 2], a = height(i), b = height(j), c = height(k);
    if (a >= 0 === b >= 0 && b >= 0 === c >= 0) continue;
    const edges = [[i, j, a, b], [j, k, b, c], [k, i, c, a]].filter(([, , from, to]) => from >= 0 !== to >= 0);
    const [first, second] = edges.sort((one, other) => other[2] - one[2]).map(edge => crossing(...edge));
    outline += Math.hypot(...first.map((x, c) => x - second[c]));
    starts.push(first);  // where an edge leads down: each point of a closed outline is one start
  }
  if (!tape) return outline;
  const flat = Math.abs(n[0]) < Math.abs(n[2]) ? [1, 0, 0] : [0, 0, 1], across = cross(flat, n);
  const scale = Math.hypot(...across), u = across.map(x => x / scale), v = cross(n, u);
  const points = starts.map(p => [p[0] * u[0] + p[1] * u[1] + p[2] * u[2], p[0] * v[0] + p[1] * v[1] + p[2] * v[2]]);
  points.sort((a, b) => a[0] - b[0] || a[1] - b[1]);
  const chain = ordered => {  // Andrew's monotone chain: one side of the hull
    const hull = [];
    for (const p of ordered) {
      while (hull.length > 1) {
        const [a, b] = hull.slice(-2);
        if ((b[0] - a[0]) * (p[1] - a[1]) - (b[1] - a[1]) * (p[0] - a[0]) > 0) break;
        hull.pop();
      }
      hull.push(p);
    }
    return hull.slice(1).reduce((sum, p, i) => sum + Math.hypot(p[0] - hull[i][0], p[1] - hull[i][1]), 0);
  };
  return chain(points) + chain(points.reverse());
}

function cross(a, b) {
  return [a[1] * b[2] - a[2] * b[1], a[2] * b[0] - a[0] * b[2], a[0] * b[1] - a[1] * b[0]];
}

if (typeof module !== "undefined") module.exports = {Body, unpack, vertexNormals, interpolate, rotation};
