// The page: controls, and a picture drawn with WebGL 2. The arithmetic of the body is in body.js.
"use strict";

const byId = id => document.getElementById(id);

/** A DOM element with properties and children; text is never read as HTML. */
function make(tag, properties = {}, ...children) {
  const element = Object.assign(document.createElement(tag), properties);
  element.append(...children);
  return element;
}

// Matrices are arrays of 16 numbers by columns, as WebGL has them.
const multiply = (a, b) => Array.from({length: 16}, (_, i) => [0, 1, 2, 3].reduce((sum, k) => sum + a[4 * k + i % 4] * b[(i & ~3) + k], 0));
const dot = (a, b) => a[0] * b[0] + a[1] * b[1] + a[2] * b[2];
const scaled = (a, by) => a.map(x => x * by);
const plus = (a, b) => a.map((x, i) => x + b[i]);
const unit = a => scaled(a, 1 / Math.hypot(...a));

function lookAt(eye, target, up) {
  const back = unit(plus(eye, scaled(target, -1))), right = unit(cross(up, back)), top = cross(back, right);
  return [right[0], top[0], back[0], 0, right[1], top[1], back[1], 0, right[2], top[2], back[2], 0,
          -dot(right, eye), -dot(top, eye), -dot(back, eye), 1];
}

function perspective(fovy, aspect, near, far) {
  const f = 1 / Math.tan(fovy / 2);
  return [f / aspect, 0, 0, 0, 0, f, 0, 0, 0, 0, (near + far) / (near - far), -1, 0, 0, 2 * near * far / (near - far), 0];
}

const orthographic = (half, depth) => [1 / half, 0, 0, 0, 0, 1 / half, 0, 0, 0, 0, -2 / depth, 0, 0, 0, -1, 1];

const VERTEX = `#version 300 es
in vec3 position; in vec3 normal; out vec3 place; out vec3 direction; uniform mat4 view; uniform vec3 shift;
void main() { place = position + shift; direction = normal; gl_Position = view * vec4(place, 1.0); }`;
const COMMON = `#version 300 es
precision highp float; precision highp sampler2DShadow;
in vec3 place; in vec3 direction; out vec4 color;
uniform sampler2DShadow shadows; uniform sampler2D below; uniform mat4 light; uniform vec3 eye, sun;
float noise(vec2 p) { return fract(52.9829189 * fract(dot(p, vec2(0.06711056, 0.00583715)))); }
float lit(vec3 at, float radius) {  // share of a soft light that is seen: a spiral of 20 looks
  vec3 p = (light * vec4(at, 1.0)).xyz * 0.5 + 0.5; float turn = 6.2832 * noise(gl_FragCoord.xy), sum = 0.0;
  for (int i = 0; i < 20; i++) {
    float r = radius * sqrt((float(i) + 0.5) / 20.0), a = turn + 2.4 * float(i);
    sum += texture(shadows, vec3(p.xy + r * vec2(cos(a), sin(a)), p.z - 0.0015));
  }
  return sum / 20.0;
}`;
const SKIN = COMMON + `
uniform vec3 tint, sky, floorLight; uniform float ghost;
void main() {
  vec3 n = normalize(direction), v = normalize(eye - place);
  if (dot(n, v) < 0.0 && ghost > 0.0) discard;
  float facing = clamp(dot(n, v), 0.0, 1.0), edge = pow(1.0 - facing, 3.0), high = n.y * 0.5 + 0.5;
  if (ghost > 0.0) { float a = ghost * mix(0.10, 0.75, pow(1.0 - facing, 1.7)); color = vec4(tint * a, a); return; }
  float key = dot(n, sun), seen = lit(place + 0.012 * n, 0.012);
  vec3 soft = vec3(0.26, 0.16, 0.12);  // light that comes out again beside where it went in, mostly red
  vec3 warm = clamp((key + soft) / (1.0 + soft), 0.0, 1.0) * mix(vec3(0.18, 0.10, 0.07), vec3(1.0), seen);
  float fill = clamp(dot(n, normalize(vec3(-sun.x, 0.25, sun.z))) * 0.5 + 0.5, 0.0, 1.0);
  float close = mix(0.45, 1.0, smoothstep(-0.1, 0.45, place.y + 0.3 * high));  // the ground is near
  vec3 around = close * (mix(floorLight, sky, high) * 0.34 + 0.13 * fill * sky) * mix(0.82, 1.0, seen);
  vec3 c = tint * (2.05 * warm * vec3(1.0, 0.95, 0.88) + around);
  float sheen = 0.045 * pow(clamp(dot(n, normalize(sun + v)), 0.0, 1.0), 14.0) * seen;
  c = c * mix(1.0, 0.8, edge) + (sheen + 0.16 * edge * high * close) * sky;  // fine hair at the outline
  c = c * (1.0 + 0.05 * c) / (1.0 + 0.42 * c);  // bright parts roll off as film does
  c = mix(12.92 * c, 1.055 * pow(c, vec3(1.0 / 2.4)) - 0.055, step(0.0031308, c));
  color = vec4(c + (noise(gl_FragCoord.xy) - 0.5) / 255.0, 1.0);
}`;
const FLOOR = COMMON + `
uniform float dark; uniform vec3 middle; uniform float size;
void main() {  // shadow of the light, and of what stands close to the ground
  float away = length(place.xz - middle.xz) / size, fade = smoothstep(1.0, 0.25, away);
  float shade = 1.0 - lit(place, 0.03), turn = 6.2832 * noise(gl_FragCoord.xy), near = 0.0;
  for (int i = 0; i < 28; i++) {
    float r = 0.11 * sqrt((float(i) + 0.5) / 28.0), a = turn + 2.4 * float(i);
    vec2 p = (place.xz - middle.xz) / 2.8 + 0.5 + r * vec2(cos(a), sin(a));
    near += exp(-texture(below, p).r * 9.0 * 2.0) * exp(-18.0 * r);
  }
  float a = fade * clamp(mix(0.34, 0.5, dark) * shade + near / 28.0 * 3.2, 0.0, 0.86);
  color = vec4(vec3(1.0, 0.97, 0.92) * dark * 0.07 * fade * (1.0 - a), a);
}`;

/** A picture of meshes on a floor. */
class Scene {
  constructor(canvas) {
    const gl = this.gl = canvas.getContext("webgl2", {antialias: true, alpha: true, premultipliedAlpha: true});
    if (!gl) throw new Error("this browser has no WebGL 2");
    this.canvas = canvas;
    this.programs = {skin: this.link(VERTEX, SKIN), floor: this.link(VERTEX, FLOOR),
                     depth: this.link(VERTEX, "#version 300 es\nvoid main() {}")};
    this.shadows = this.depthTarget(1024, true);
    this.below = this.depthTarget(512, false);
    this.plane = this.mesh([0, 1, 2, 0, 2, 3]);
    this.fill(this.plane, [-9, 0, -9, -9, 0, 9, 9, 0, 9, 9, 0, -9], [0, 1, 0, 0, 1, 0, 0, 1, 0, 0, 1, 0]);
  }

  link(...sources) {
    const gl = this.gl, program = gl.createProgram();
    sources.forEach((source, i) => {
      const shader = gl.createShader(i ? gl.FRAGMENT_SHADER : gl.VERTEX_SHADER);
      gl.shaderSource(shader, source);
      gl.compileShader(shader);
      gl.attachShader(program, shader);
    });
    ["position", "normal"].forEach((name, i) => gl.bindAttribLocation(program, i, name));
    gl.linkProgram(program);
    if (!gl.getProgramParameter(program, gl.LINK_STATUS))
      throw new Error(gl.getAttachedShaders(program).map(shader => gl.getShaderInfoLog(shader)).join("\n"));
    return {program, uniforms: {}};
  }

  mesh(faces) {
    const gl = this.gl, mesh = {array: gl.createVertexArray(), buffers: [gl.createBuffer(), gl.createBuffer()], count: faces.length};
    gl.bindVertexArray(mesh.array);
    mesh.buffers.forEach((buffer, i) => {
      gl.bindBuffer(gl.ARRAY_BUFFER, buffer);
      gl.enableVertexAttribArray(i);
      gl.vertexAttribPointer(i, 3, gl.FLOAT, false, 0, 0);
    });
    gl.bindBuffer(gl.ELEMENT_ARRAY_BUFFER, gl.createBuffer());
    gl.bufferData(gl.ELEMENT_ARRAY_BUFFER, Uint32Array.from(faces), gl.STATIC_DRAW);
    return mesh;
  }

  fill(mesh, vertices, normals) {
    const gl = this.gl;
    [vertices, normals].forEach((values, i) => {
      gl.bindBuffer(gl.ARRAY_BUFFER, mesh.buffers[i]);
      gl.bufferData(gl.ARRAY_BUFFER, Float32Array.from(values), gl.DYNAMIC_DRAW);
    });
  }

  depthTarget(size, compare) {
    const gl = this.gl, texture = gl.createTexture(), buffer = gl.createFramebuffer();
    gl.bindTexture(gl.TEXTURE_2D, texture);
    gl.texStorage2D(gl.TEXTURE_2D, 1, gl.DEPTH_COMPONENT24, size, size);
    const filter = compare ? gl.LINEAR : gl.NEAREST;
    for (const [name, value] of [["MIN_FILTER", filter], ["MAG_FILTER", filter], ["WRAP_S", gl.CLAMP_TO_EDGE], ["WRAP_T", gl.CLAMP_TO_EDGE]])
      gl.texParameteri(gl.TEXTURE_2D, gl["TEXTURE_" + name], value);
    if (compare) gl.texParameteri(gl.TEXTURE_2D, gl.TEXTURE_COMPARE_MODE, gl.COMPARE_REF_TO_TEXTURE);
    gl.bindFramebuffer(gl.FRAMEBUFFER, buffer);
    gl.framebufferTexture2D(gl.FRAMEBUFFER, gl.DEPTH_ATTACHMENT, gl.TEXTURE_2D, texture, 0);
    gl.bindFramebuffer(gl.FRAMEBUFFER, null);
    return {texture, buffer, size};
  }

  use(program, values) {
    const gl = this.gl;
    gl.useProgram(program.program);
    for (const [name, value] of Object.entries(values)) {
      const at = program.uniforms[name] ??= gl.getUniformLocation(program.program, name);
      if (Array.isArray(value)) value.length === 16 ? gl.uniformMatrix4fv(at, false, value) : gl.uniform3fv(at, value);
      else if (name === "shadows" || name === "below") gl.uniform1i(at, value);
      else gl.uniform1f(at, value);
    }
  }

  drawMesh(mesh) {
    this.gl.bindVertexArray(mesh.array);
    this.gl.drawElements(this.gl.TRIANGLES, mesh.count, this.gl.UNSIGNED_INT, 0);
  }

  /** Draw items {mesh, tint, shift, ghost} as a camera {view, eye, sun, middle, floor, dark} sees them. */
  draw(items, {view, eye, sun, middle, floor, dark}) {
    const gl = this.gl, solid = items.filter(item => !item.ghost), ghosts = items.filter(item => item.ghost);
    const light = multiply(orthographic(1.5, 5), lookAt(plus(middle, scaled(sun, 2.5)), middle, [0, 1, 0.01]));
    const up = [1 / 1.4, 0, 0, 0, 0, 0, 1, 0, 0, 1 / 1.4, 0, 0, -middle[0] / 1.4, -middle[2] / 1.4, -1, 1];
    gl.enable(gl.DEPTH_TEST);
    gl.depthFunc(gl.LEQUAL);
    for (const [target, matrix] of [[this.shadows, light], [this.below, up]]) {
      gl.bindFramebuffer(gl.FRAMEBUFFER, target.buffer);
      gl.viewport(0, 0, target.size, target.size);
      gl.clear(gl.DEPTH_BUFFER_BIT);
      for (const item of solid) this.use(this.programs.depth, {view: matrix, shift: item.shift}), this.drawMesh(item.mesh);
    }
    gl.bindFramebuffer(gl.FRAMEBUFFER, null);
    gl.viewport(0, 0, this.canvas.width, this.canvas.height);
    gl.clearColor(0, 0, 0, 0);
    gl.clear(gl.COLOR_BUFFER_BIT | gl.DEPTH_BUFFER_BIT);
    [this.shadows, this.below].forEach((target, i) => { gl.activeTexture(gl.TEXTURE0 + i); gl.bindTexture(gl.TEXTURE_2D, target.texture); });
    const shared = {view, eye, sun, light, shadows: 0, below: 1, shift: [0, 0, 0]};
    gl.enable(gl.BLEND);
    gl.blendFunc(gl.ONE, gl.ONE_MINUS_SRC_ALPHA);
    if (floor) {
      gl.depthMask(false);
      this.use(this.programs.floor, {...shared, dark, middle, size: 2.6});
      this.drawMesh(this.plane);
      gl.depthMask(true);
    }
    const [sky, floorLight] = dark ? [[0.62, 0.70, 0.82], [0.20, 0.17, 0.15]] : [[0.86, 0.93, 1.0], [0.62, 0.53, 0.45]];
    for (const {mesh, tint, shift, ghost} of [...solid, ...ghosts]) {
      this.use(this.programs.skin, {...shared, tint, shift, ghost: ghost || 0, sky, floorLight});
      if (ghost) {  // its nearest surface alone
        gl.colorMask(false, false, false, false);
        this.drawMesh(mesh);
        gl.colorMask(true, true, true, true);
      }
      this.drawMesh(mesh);
    }
  }
}

const linear = hex => [1, 3, 5].map(i => parseInt(hex.slice(i, i + 2), 16) / 255).map(x => x <= 0.04045 ? x / 12.92 : ((x + 0.055) / 1.055) ** 2.4);
const styled = name => getComputedStyle(document.documentElement).getPropertyValue(name).trim();

/** The stage: a scene, an orbit by mouse, touch and keys, and marks drawn over the picture. */
class Stage {
  constructor() {
    this.element = byId("stage");
    this.canvas = byId("scene");
    this.scene = new Scene(this.canvas);
    this.marks = byId("marks").getContext("2d");
    this.dark = matchMedia("(prefers-color-scheme: dark)");
    this.dark.addEventListener("change", () => this.redraw());
    this.items = [];
    this.paint = () => {};
    this.reset();
    this.listen();
    new ResizeObserver(() => this.redraw()).observe(this.element);
  }

  reset() {
    Object.assign(this, {yaw: 0.42, pitch: 0.06, zoom: 1, moved: [0, 0, 0], tall: 1.8, center: [0, 0.9, 0], fovy: 0.46});
  }

  listen() {
    const pointers = new Map(), canvas = this.canvas;
    const spread = () => {
      const [a, b] = [...pointers.values()];
      return b ? [Math.hypot(a.x - b.x, a.y - b.y), (a.x + b.x) / 2, (a.y + b.y) / 2] : null;
    };
    canvas.addEventListener("contextmenu", event => event.preventDefault());
    canvas.addEventListener("pointerdown", event => {
      canvas.setPointerCapture(event.pointerId);
      pointers.set(event.pointerId, {x: event.clientX, y: event.clientY});
    });
    canvas.addEventListener("pointermove", event => {
      const pointer = pointers.get(event.pointerId);
      this.pointer = {x: event.offsetX, y: event.offsetY};
      if (!pointer) return void (event.pointerType === "mouse" && this.redraw());
      const before = spread(), dx = event.clientX - pointer.x, dy = event.clientY - pointer.y;
      pointers.set(event.pointerId, {x: event.clientX, y: event.clientY});
      const after = spread();
      if (after) {
        this.zoom = this.limit(this.zoom * before[0] / after[0]);
        this.pan(after[1] - before[1], after[2] - before[2]);
      } else if (event.buttons & 6 || event.shiftKey) this.pan(dx, dy);
      else this.turn(-dx * 0.008, dy * 0.006);
    });
    for (const name of ["pointerup", "pointercancel"]) canvas.addEventListener(name, event => pointers.delete(event.pointerId));
    canvas.addEventListener("pointerleave", () => { this.pointer = null; this.redraw(); });
    canvas.addEventListener("wheel", event => {
      event.preventDefault();
      this.zoom = this.limit(this.zoom * Math.exp(event.deltaY * 0.0012));
      this.redraw();
    }, {passive: false});
    canvas.addEventListener("dblclick", () => { Object.assign(this, {yaw: 0.42, pitch: 0.06, zoom: 1, moved: [0, 0, 0]}); this.redraw(); });
    canvas.addEventListener("keydown", event => {
      const turns = {ArrowLeft: [-0.1, 0], ArrowRight: [0.1, 0], ArrowUp: [0, 0.08], ArrowDown: [0, -0.08]}[event.key];
      const zoom = {"+": 0.9, "=": 0.9, "-": 1.1}[event.key];
      if (turns) this.turn(...turns);
      if (zoom) this.zoom = this.limit(this.zoom * zoom), this.redraw();
      if (turns || zoom) event.preventDefault();
    });
  }

  limit(zoom) { return Math.min(Math.max(zoom, 0.08), 4); }

  turn(yaw, pitch) {
    this.yaw += yaw;
    this.pitch = Math.min(Math.max(this.pitch + pitch, -0.25), 1.5);
    this.redraw();
  }

  pan(dx, dy) {
    const {right, top, distance} = this.camera(), by = 2 * distance * Math.tan(this.fovy / 2) / this.element.clientHeight;
    this.moved = plus(this.moved, plus(scaled(right, -dx * by), scaled(top, dy * by)));
    this.redraw();
  }

  /** The camera that looks at the center from all around. */
  camera() {
    const width = this.element.clientWidth, height = this.element.clientHeight, aspect = width / height || 1;
    const half = Math.tan(this.fovy / 2), wide = Math.max(1, 1.02 / aspect);
    const distance = this.zoom * wide * 0.66 * this.tall / half, target = plus(this.center, this.moved);
    const back = [Math.sin(this.yaw) * Math.cos(this.pitch), Math.sin(this.pitch), Math.cos(this.yaw) * Math.cos(this.pitch)];
    const eye = plus(target, scaled(back, distance)), right = unit(cross([0, 1, 0], back)), top = cross(back, right);
    const view = multiply(perspective(this.fovy, aspect, 0.05, 60), lookAt(eye, target, [0, 1, 0]));
    return {view, eye, right, top, back, distance, width, height};
  }

  redraw() {
    this.waiting ??= requestAnimationFrame(() => { this.waiting = null; this.draw(); });
  }

  draw() {
    const camera = this.fixed ? this.fixed() : this.camera(), {view, eye, right, top, back, width, height} = camera;
    const ratio = Math.min(devicePixelRatio || 1, 2);
    for (const canvas of [this.canvas, this.marks.canvas])
      if (canvas.width !== Math.round(width * ratio) || canvas.height !== Math.round(height * ratio))
        canvas.width = Math.round(width * ratio), canvas.height = Math.round(height * ratio);
    // The light stands to the left of the camera, high, and turns with it: faces are never in the dark.
    const level = unit([back[0], 0, back[2]]);
    const sun = unit(plus(plus(scaled(right, -0.62), scaled(level, 0.72)), [0, 0.95, 0]));
    this.scene.draw(this.items, {view, eye, sun, middle: this.center, floor: !this.fixed, dark: +this.dark.matches});
    this.marks.setTransform(ratio, 0, 0, ratio, 0, 0);
    this.marks.clearRect(0, 0, width, height);
    const project = ([x, y, z]) => {
      const [a, b, , w] = [0, 1, 2, 3].map(i => view[i] * x + view[4 + i] * y + view[8 + i] * z + view[12 + i]);
      return [(a / w + 1) / 2 * width, (1 - b / w) / 2 * height];
    };
    this.paint(this.marks, project, camera);
  }
}

/** A labelled slider; `change` gets its number. */
function slider(name, {low, high, step, value, format = x => x.toFixed(2), zero = low, title = ""}, change) {
  const input = make("input", {type: "range", min: low, max: high, step, value, ariaLabel: name});
  const output = make("output"), share = x => Math.min(Math.max((x - low) / (high - low), 0), 1);
  const set = x => {
    if (+input.value !== x) input.value = x;
    output.textContent = format(x);
    input.style.setProperty("--from", Math.min(share(zero), share(x)));
    input.style.setProperty("--to", Math.max(share(zero), share(x)));
  };
  input.addEventListener("input", () => { set(+input.value); change(+input.value); });
  set(value);
  return {row: make("div", {className: "row", title}, make("span", {textContent: name}), input, output), set};
}

/** A box to tick; `change` gets whether it is. */
function checkbox(text, checked, change) {
  return make("label", {className: "check"}, make("input", {type: "checkbox", checked, onchange: event => change(event.target.checked)}), text);
}

function section(title, note, ...children) {
  const side = make("span", {textContent: note}), part = make("section", {}, make("h2", {}, title, side), ...children);
  byId("panel").append(part);
  return {part, side};
}

const plain = name => name.replaceAll("_", " ");
const centimetres = x => (100 * x).toFixed(1);

function ageName(years) {
  if (years < 1 / 24) return "newborn";
  if (years >= 19) return "adult";
  return years < 2 ? `${Math.round(12 * years)} months` : `${years.toFixed(1).replace(".0", "")} years`;
}

/** The growth chart: the WHO's median and two standard deviations, and this body; a drag on it sets the age. */
function growthChart({years, median, sd}, change) {
  const X = x => 22 + 298 * x / 19, Y = y => 140 - 130 * (y - 0.4) / 1.6;
  const line = (xs, ys) => xs.map((x, i) => `${i ? "L" : "M"}${X(x).toFixed(1)} ${Y(ys[i]).toFixed(1)}`).join("");
  const back = [...years].reverse(), upper = median.map((m, i) => m + 2 * sd[i]), lower = median.map((m, i) => m - 2 * sd[i]);
  const box = make("div");
  box.innerHTML = `<svg id="chart" viewBox="0 0 324 158" role="img" aria-label="Stature by age"><g>` +
    [0.5, 1, 1.5, 2].map(y => `<line class="grid" x1="22" x2="320" y1="${Y(y)}" y2="${Y(y)}"/><text x="16" y="${Y(y) + 3.5}" text-anchor="end">${y === 2 ? "2 m" : y}</text>`).join("") +
    [0, 5, 10, 15, 19].map(x => `<text x="${X(x)}" y="156" text-anchor="${x === 19 ? "end" : x ? "middle" : "start"}">${x === 19 ? "19 years" : x}</text>`).join("") +
    `<path class="band" d="${line(years, upper)}${line(back, lower.reverse()).replace("M", "L")}Z"/><path class="median" d="${line(years, median)}"/>` +
    `<text class="who" x="${X(12.2)}" y="${Y(1.24)}">WHO median ± 2 SD</text><line class="now"/><circle class="dot" r="6"/></g></svg>`;
  const chart = box.firstChild, drag = event => {
    const {left, width} = chart.getBoundingClientRect();
    change(Math.min(Math.max(((event.clientX - left) / width * 324 - 22) / 298 * 19, 0), 19));
  };
  chart.addEventListener("pointerdown", event => { chart.setPointerCapture(event.pointerId); drag(event); });
  chart.addEventListener("pointermove", event => event.buttons && drag(event));
  const put = (selector, values) => Object.entries(values).forEach(([name, value]) => chart.querySelector(selector).setAttribute(name, value));
  return {chart, set(at, stature) {
    put(".now", {x1: X(at), x2: X(at), y1: 140, y2: Y(stature)});
    put(".dot", {cx: X(at), cy: Y(stature)});
  }};
}

/** The page of one body. */
function showBody(about, stage) {
  const body = new Body(about), {ages} = about, J = about.parents.length;
  const state = {age: 0, betas: about.betas.map(() => 0), angles: new Float64Array(3 * J), pose: "rest", turned: new Set(), ghost: false, layout: "", ruler: true};
  const meshes = {body: stage.scene.mesh(about.faces), ghost: stage.scene.mesh(about.faces)};
  let shaped, posed, ground, values, keypoints = null, shapeOf = null, moving = null;

  function update() {
    const identity = JSON.stringify([state.betas, state.age]);
    if (identity !== shapeOf) {
      shaped = body.shape(state.betas, state.age);
      values = body.measure(shaped.rest);
      shapeOf = identity;
      showNumbers();
    }
    posed = body.pose(shaped, state.angles);
    const layout = about.layouts.find(({name}) => name === state.layout);
    const put = (mesh, {vertices}) => {
      let low = Infinity;
      for (let i = 1; i < vertices.length; i += 3) low = Math.min(low, vertices[i]);
      stage.scene.fill(mesh, vertices, vertexNormals(vertices, about.faces));
      return low;
    };
    ground = put(meshes.body, posed);
    keypoints = layout && {...layout, points: body.keypoints(layout, posed.vertices, posed.joints)};
    const items = [{mesh: meshes.body, tint: linear(about.color), shift: [0, -ground, 0]}];
    if (state.ghost) {
      const low = put(meshes.ghost, body.pose(body.shape(state.betas, 0), state.angles));
      items.push({mesh: meshes.ghost, tint: linear(styled("--mark")), shift: [0, -low, 0], ghost: 0.55});
    }
    stage.items = items;
    const adult = ages ? ages.who.median.at(-1) : values.stature;
    stage.tall = state.ghost ? Math.max(adult, values.stature) * 1.06 : 0.3 * adult + 0.74 * values.stature;
    stage.center = [0, stage.tall * 0.47, 0];
    stage.redraw();
    code.textContent = python();
  }

  /** Go to a pose by way of those between, if motion is welcome. */
  function goTo(angles) {
    const from = state.angles.slice(), began = performance.now();
    cancelAnimationFrame(moving);
    const step = now => {
      const share = matchMedia("(prefers-reduced-motion: reduce)").matches ? 1 : Math.min(Math.max((now - began) / 380, 0), 1);  // a frame may have begun before
      const eased = share * share * (3 - 2 * share);
      state.angles = Float64Array.from(angles, (angle, i) => share === 1 ? angle : from[i] + eased * (angle - from[i]));
      update();
      if (share < 1) moving = requestAnimationFrame(step);
    };
    step(performance.now());
  }

  const years = () => ages ? interpolate(state.age, [...ages.offsets].reverse(), [...ages.years].reverse()) : null;
  const setAge = age => { state.age = age; update(); };
  const setYears = at => setAge(interpolate(at, ages.years, ages.offsets));

  // Controls
  let chart, yearSlider, offsetSlider, ageNote;
  if (ages) {
    chart = growthChart(ages.who, setYears);
    yearSlider = slider("years", {low: 0, high: 19, step: 0.01, value: 19, format: x => x >= 19 ? "19 +" : x.toFixed(2)}, setYears);
    const low = Math.min(0, ...about.anchors), high = Math.max(ages.offsets[0], ...about.anchors);
    offsetSlider = slider("age offset", {low: low - 0.25, high: high + 0.2, step: 0.001, value: 0, zero: 0, format: x => x.toFixed(3),
      title: "0 adult, 1 infant; beyond the body's ages it is extrapolated"}, setAge);
    ageNote = section("Age", "", chart.chart, yearSlider.row, offsetSlider.row).side;
  }
  const rows = body.measures.map(({name}) => make("tr", {}, make("td", {textContent: plain(name)}), make("td"), make("td")));
  const poses = {rest: new Array(3 * J).fill(0), ...about.poses};
  const chips = Object.keys(poses).map(name => make("button", {textContent: name, type: "button", onclick: () => setPose(name)}));
  const joint = make("select", {ariaLabel: "joint", onchange: () => showTurns()}, ...about.jointNames.map((name, j) => make("option", {value: j, textContent: plain(name)})));
  const turns = ["x", "y", "z"].map((axis, c) => slider(`about ${axis}`, {low: -180, high: 180, step: 1, value: 0, zero: 0, format: x => `${x.toFixed(0)}°`}, degrees => {
    state.angles[3 * joint.value + c] = degrees * Math.PI / 180;
    state.turned.add(+joint.value);
    update();
  }));
  const showTurns = () => turns.forEach((turn, c) => turn.set(state.angles[3 * joint.value + c] * 180 / Math.PI));
  function setPose(name) {
    state.pose = name;
    state.turned.clear();
    chips.forEach(chip => { chip.ariaPressed = chip.textContent === name; });
    goTo(poses[name]);
    turns.forEach((turn, c) => turn.set(poses[name][3 * joint.value + c] * 180 / Math.PI));
  }
  section("Pose", "", make("div", {className: "chips"}, ...chips),
    make("details", {}, make("summary", {textContent: "Turn one joint"}), joint, ...turns.map(turn => turn.row)));
  const betas = about.betas.map((name, k) => slider(plain(name), {low: -4, high: 4, step: 0.01, value: 0, zero: 0, title: `betas[${k}]`}, x => { state.betas[k] = x; update(); }));
  const setBetas = values => { state.betas = values; betas.forEach((beta, k) => beta.set(values[k])); update(); };
  const gauss = () => Math.sqrt(-2 * Math.log(1 - Math.random())) * Math.cos(2 * Math.PI * Math.random());
  const random = make("button", {className: "quiet", textContent: "someone", onclick: () => setBetas(state.betas.map(() => +gauss().toFixed(2)))});
  const mean = make("button", {className: "quiet", textContent: "mean", onclick: () => setBetas(state.betas.map(() => 0))});
  if (betas.length) section("Shape", "", ...betas.map(beta => beta.row)).side.append(random, " · ", mean);
  section("Measures", "cm, of the rest pose", make("table", {}, make("tbody", {}, ...rows)));
  const layouts = make("select", {ariaLabel: "keypoints", onchange: event => { state.layout = event.target.value; update(); }},
    make("option", {value: "", textContent: "none"}), ...about.layouts.map(({name, names}) => make("option", {value: name, textContent: `${name}, ${names.length} points`})));
  const show = section("Show", "", make("div", {className: "row"}, make("span", {textContent: "keypoints"}), layouts));
  if (ages) show.part.append(checkbox("the adult, as a ghost", state.ghost, on => { state.ghost = on; update(); }));
  show.part.append(checkbox("ruler", state.ruler, on => { state.ruler = on; update(); }));
  const code = make("pre", {id: "code", tabIndex: 0});
  const copy = make("button", {id: "copy", textContent: "Copy as Python", type: "button", onclick: async () => {
    try { await navigator.clipboard.writeText(code.textContent); copy.textContent = "Copied"; } catch {
      getSelection().selectAllChildren(code);
      copy.textContent = document.execCommand("copy") ? "Copied" : "Selected: press Ctrl+C";
    }
    setTimeout(() => { copy.textContent = "Copy as Python"; }, 1600);
  }});
  section("Code", "", copy, code);
  byId("panel").append(make("footer", {}, `${about.name}: ${about.license}. Shown by agebody.`));

  function showNumbers() {
    const at = years(), {stature} = values, who = ages && interpolate(at, ages.who.years, ages.who.median);
    body.measures.forEach(({name}, i) => {
      rows[i].cells[1].textContent = centimetres(values[name]);
      let note = "";
      if (ages && name === "stature") {
        const z = (stature - who) / interpolate(at, ages.who.years, ages.who.sd);
        note = `median ${centimetres(who)}, ${z < 0 ? "−" : "+"}${Math.abs(z).toFixed(1)} SD`;
      }
      if (ages && name === "head_circumference" && at <= ages.head.years.at(-1)) note = `median ${centimetres(interpolate(at, ages.head.years, ages.head.median))}`;
      rows[i].cells[2].textContent = note;
    });
    document.querySelector("h1").textContent = about.name;
    byId("headline").textContent = ages ? ageName(at) : `${stature.toFixed(2)} m`;
    byId("subline").textContent = ages ? `${stature.toFixed(3)} m tall` : "tall";
    if (!ages) return;
    chart.set(at, stature);
    yearSlider.set(at);
    offsetSlider.set(state.age);
    const [first, last] = [Math.min(0, ...about.anchors), Math.max(0, ...about.anchors)];
    ageNote.textContent = state.age < first || state.age > last ? "extrapolated" : "";
  }

  /** The code that makes this body. */
  function python() {
    const list = values => `[${values.map(x => +x.toFixed(6)).join(", ")}]`, counts = state.betas.map(x => x !== 0);
    const named = state.pose !== "rest", used = about.betas.length ? counts.lastIndexOf(true) + 1 : 0;
    const options = about.betas.length === 10 && about.numBetas === 10 ? "" : `, num_betas=${about.numBetas}${about.betas.length > about.numBetas ? `, num_expression=${about.betas.length - about.numBetas}` : ""}`;
    const lines = ["import torch", "import agebody", ...(named ? ["from agebody.people import pose"] : []), "", `body = agebody.${about.layer}(${about.maker}${options})`];
    const turned = named || state.turned.size;
    if (named) lines.push(`angles = torch.from_numpy(pose(${JSON.stringify(state.pose)}, body.asset.joint_names)).float()`);
    else if (turned) lines.push(`angles = torch.zeros(${J}, 3)`);
    for (const j of state.turned) lines.push(`angles[${j}] = torch.tensor(${list([...state.angles.slice(3 * j, 3 * j + 3)])})  # ${about.jointNames[j]}`);
    const given = [];
    if (used) given.push(`    betas=torch.tensor(${list(state.betas)}),`);
    if (ages && state.age) given.push(`    age_offset=${+state.age.toFixed(6)},  # ${ageName(years())}`);
    if (turned) given.push("    global_orient=angles[0],", "    body_pose=angles[1:],");
    return [...lines, ...(given.length ? ["out = body(", ...given, ")"] : ["out = body()"])].join("\n");
  }

  stage.paint = (marks, project, {right, distance}) => {
    marks.font = `11px ${getComputedStyle(document.body).fontFamily}`;
    marks.lineWidth = 1;
    if (state.ruler) {
      const away = plus(scaled(right, 0.36 * stage.tall + 0.06), [stage.center[0], 0, stage.center[2]]);
      const at = y => project([away[0], y, away[2]]), top = Math.ceil(10 * Math.max(stage.tall * 0.97, values.stature)) / 10;
      const line = (a, b, color) => { marks.strokeStyle = color; marks.beginPath(); marks.moveTo(...a); marks.lineTo(...b); marks.stroke(); };
      line(at(0), at(top), styled("--soft"));
      marks.textAlign = "left";
      marks.fillStyle = styled("--soft");
      for (let i = 0; i <= Math.round(10 * top); i++) {
        const [x, y] = at(i / 10), long = i % 5 === 0;
        line([x, y], [x + (long ? 8 : 4), y], styled("--soft"));
        if (long) marks.fillText(i ? `${(i / 10).toFixed(1)} m` : "0", x + 13, y + 4);
      }
      if (ages) {
        const [x, y] = at(interpolate(years(), ages.who.years, ages.who.median));
        marks.fillStyle = styled("--mark");
        line([x - 14, y], [x + 4, y], styled("--mark"));
        marks.textAlign = "right";
        marks.fillText("WHO median", x - 18, y + 4);
      }
    }
    if (keypoints) {
      const at = keypoints.names.map((_, k) => project([keypoints.points[3 * k], keypoints.points[3 * k + 1] - ground, keypoints.points[3 * k + 2]]));
      marks.strokeStyle = styled("--panel");
      marks.lineCap = "round";
      for (const [width, color] of [[4.5, styled("--panel")], [2.2, styled("--mark")]])
        for (const [a, b] of keypoints.edges) { marks.lineWidth = width; marks.strokeStyle = color; marks.beginPath(); marks.moveTo(...at[a]); marks.lineTo(...at[b]); marks.stroke(); }
      at.forEach(([x, y]) => { marks.beginPath(); marks.arc(x, y, 4, 0, 7); marks.fillStyle = styled("--mark"); marks.fill(); marks.lineWidth = 1.5; marks.strokeStyle = styled("--panel"); marks.stroke(); });
      const near = stage.pointer && at.map(([x, y], k) => [Math.hypot(x - stage.pointer.x, y - stage.pointer.y), k]).sort((a, b) => a[0] - b[0])[0];
      if (near && near[0] < 14) label(marks, at[near[1]], plain(keypoints.names[near[1]]));
    }
  };
  setPose(about.poses.standing ? "standing" : "rest");
  return {state, body, update, setAge, setYears, setPose, setBetas, posed: () => posed, shaped: () => shaped, values: () => values};
}

function label(marks, [x, y], text) {
  marks.textAlign = "left";
  marks.font = `500 12px ${getComputedStyle(document.body).fontFamily}`;
  const width = marks.measureText(text).width;
  marks.fillStyle = styled("--ink");
  marks.beginPath();
  marks.roundRect(x + 10, y - 22, width + 16, 22, 5);
  marks.fill();
  marks.fillStyle = styled("--panel");
  marks.fillText(text, x + 18, y - 7);
}

/** Move points [m] across the line of sight to where a lens shows them, as `agebody.cameras.distort` does. */
function bent(points, {coefficients: [k1, k2, p1, p2, k3, k4, k5, k6], limit}) {
  const moved = Float32Array.from(points);
  for (let i = 0; i < moved.length; i += 3) {
    const depth = -points[i + 2];
    if (depth <= 0) continue;
    const radius = Math.hypot(points[i], points[i + 1]) / depth, share = radius > limit ? limit / radius : 1;
    const x = points[i] / depth * share, y = -points[i + 1] / depth * share, s = x * x + y * y;  // inside the lens's view
    const factor = (1 + s * (k1 + s * (k2 + s * k3))) / (1 + s * (k4 + s * (k5 + s * k6)));
    moved[i] = (x * factor + 2 * p1 * x * y + p2 * (s + 2 * x * x)) / share * depth;
    moved[i + 1] = -(y * factor + p1 * (s + 2 * y * y) + 2 * p2 * x * y) / share * depth;
  }
  return moved;
}

/** The page of people whom cameras see: their image behind them, or all around them. */
function showScenes(about, stage) {
  const state = {at: 0, around: false, image: true, shown: null}, photo = make("img", {id: "photo", alt: ""});
  stage.element.prepend(photo);
  const meshes = [], {scenes} = about;
  const surface = ({values, steps: [step], shift}) => Float32Array.from(values, (value, i) => value * step + shift[i % 3]);

  const placed = (points, {lens}) => lens && !state.around ? bent(points, lens) : points;

  function update() {
    const scene = scenes[state.at], surfaces = scene.people.map(surface);
    let low = Infinity, high = -Infinity;
    const middle = [0, 0, 0];
    surfaces.forEach((vertices, i) => {
      meshes[i] ??= stage.scene.mesh(about.faces);
      stage.scene.fill(meshes[i], placed(vertices, scene), vertexNormals(vertices, about.faces));
      for (let v = 1; v < vertices.length; v += 3) low = Math.min(low, vertices[v]), high = Math.max(high, vertices[v]);
      scene.people[i].shift.forEach((x, c) => { middle[c] += x / surfaces.length; });
    });
    const drop = state.around && surfaces.length ? [0, -low, 0] : [0, 0, 0];
    stage.items = scene.people.map(({color}, i) => ({mesh: meshes[i], tint: linear(color), shift: drop}));
    stage.tall = surfaces.length ? Math.max(high - low, 0.5) * 1.1 : 1.8;
    stage.center = surfaces.length ? [middle[0], state.around ? stage.tall * 0.47 : middle[1], middle[2]] : [0, 0.9, 0];
    stage.fixed = state.around ? null : () => seen(scene);
    byId("hint").hidden = !state.around;
    photo.hidden = !(scene.image && state.image && !state.around);
    if (!photo.hidden && state.shown !== state.at) {
      photo.src = `data:image/jpeg;base64,${scene.image}`;
      state.shown = state.at;
    }
    document.querySelector("h1").textContent = about.name;
    byId("headline").textContent = "";
    byId("subline").textContent = scene.title;
    list.replaceChildren(...scene.people.map(({name, color}) => {
      const dot = make("i", {className: "dot"});
      dot.style.background = color;
      return make("li", {}, dot, name);
    }));
    count.side.textContent = `${scene.people.length}`;
    time.set(state.at);
    stage.redraw();
  }

  /** The image's camera: the image is as large as the stage allows, in its middle. */
  function seen({size, focal, center}) {
    const width = stage.element.clientWidth, height = stage.element.clientHeight, scale = Math.min(width / size[0], height / size[1]);
    const left = (width - scale * size[0]) / 2, above = (height - scale * size[1]) / 2, near = 0.05, far = 200;
    const x = 2 * (left + scale * center[0]) / width - 1, y = 1 - 2 * (above + scale * center[1]) / height;
    const view = [2 * scale * focal[0] / width, 0, 0, 0, 0, 2 * scale * focal[1] / height, 0, 0,
                  -x, -y, -(far + near) / (far - near), -1, 0, 0, -2 * far * near / (far - near), 0];
    return {view, eye: [0, 0, 0], right: [1, 0, 0], top: [0, 1, 0], back: [0, 0, 1], distance: 1, width, height};
  }

  let playing = null;
  const go = at => { state.at = (at + scenes.length) % scenes.length; update(); };
  const time = slider(about.rate ? "frame" : "image", {low: 0, high: scenes.length - 1, step: 1, value: 0, format: x => `${x + 1}/${scenes.length}`}, go);
  const play = make("button", {type: "button", id: "play", textContent: "Play", onclick: () => {
    clearInterval(playing);
    playing = playing ? null : setInterval(() => go(state.at + 1), 1000 / about.rate);
    play.textContent = playing ? "Stop" : "Play";
  }});
  const part = section(about.rate ? "Time" : "Image", "", time.row);
  if (about.rate && scenes.length > 1) part.part.append(play);
  const show = section("Show", "", checkbox("from all around", state.around, on => { state.around = on; update(); }));
  if (scenes.some(({image}) => image)) show.part.append(checkbox("the image", state.image, on => { state.image = on; update(); }));
  const list = make("ul", {id: "people"});
  const count = section("People", "", list);
  byId("panel").append(make("footer", {}, `${about.license}. Shown by agebody.`));
  stage.paint = () => {};
  update();
  return {state, go, update, surface, scenes, project: given => {
    const scene = scenes[state.at], {view, width, height} = seen(scene), point = placed(given, scene);
    const [a, b, , w] = [0, 1, 2, 3].map(i => view[i] * point[0] + view[4 + i] * point[1] + view[8 + i] * point[2] + view[12 + i]);
    return [(a / w + 1) / 2 * width, (1 - b / w) / 2 * height];
  }};
}

unpack(byId("about").textContent, byId("numbers").textContent).then(about => {
  window.agebody = (about.kind === "scenes" ? showScenes : showBody)(about, new Stage());
}).catch(error => {
  byId("headline").textContent = "Cannot be shown";
  byId("subline").textContent = error.message;
  console.error(error);
});
