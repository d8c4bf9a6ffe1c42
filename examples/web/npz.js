// Read an .npz as numpy writes it: a zip of .npy files, not compressed.

const TYPES = {
  f4: Float32Array, f8: Float64Array, b1: Uint8Array,
  i1: Int8Array, i2: Int16Array, i4: Int32Array, i8: BigInt64Array,
  u1: Uint8Array, u2: Uint16Array, u4: Uint32Array, u8: BigUint64Array,
};
const DIRECTORY = 0x02014b50;
const DIRECTORY_END = 0x06054b50;

/** Return the arrays of an .npz by name, each as {data, dims}; strings as an Array of them. */
export function readNpz(buffer) {
  const view = new DataView(buffer);
  let end = buffer.byteLength - 22;
  while (view.getUint32(end, true) !== DIRECTORY_END) end--;
  const arrays = {};
  let entry = view.getUint32(end + 16, true);
  while (view.getUint32(entry, true) === DIRECTORY) {
    const [name, extra, comment] = [28, 30, 32].map((at) => view.getUint16(entry + at, true));
    if (view.getUint16(entry + 10, true) !== 0) throw new Error("the .npz is compressed");
    const local = view.getUint32(entry + 42, true);
    const start = local + 30 + view.getUint16(local + 26, true) + view.getUint16(local + 28, true);
    const file = new TextDecoder().decode(new Uint8Array(buffer, entry + 46, name));
    arrays[file.replace(/\.npy$/, "")] = readNpy(buffer.slice(start, start + view.getUint32(entry + 24, true)));
    entry += 46 + name + extra + comment;
  }
  return arrays;
}

function readNpy(buffer) {
  const view = new DataView(buffer);
  const [at, length] = view.getUint8(6) === 1 ? [10, view.getUint16(8, true)] : [12, view.getUint32(8, true)];
  const head = new TextDecoder("latin1").decode(new Uint8Array(buffer, at, length));
  const [, kind] = head.match(/'descr': '[<|](\w+)'/);
  const dims = head.match(/'shape': \(([^)]*)\)/)[1].split(",").filter((size) => size.trim()).map(Number);
  const content = buffer.slice(at + length);
  if (kind.startsWith("U")) return { data: strings(new Uint32Array(content), Number(kind.slice(1))), dims };
  const data = new TYPES[kind](content);
  return { data: head.includes("'fortran_order': True") ? rowMajor(data, dims) : data, dims };
}

function rowMajor(data, dims) {
  return data.map((_, to) => {
    let from = 0;
    let rest = to;
    for (let axis = dims.length - 1; axis >= 0; axis--) {
      from = from * dims[axis] + (rest % dims[axis]);
      rest = Math.floor(rest / dims[axis]);
    }
    return data[from];
  });
}

function strings(points, width) {
  const rows = Array.from({ length: points.length / width }, (_, i) => points.subarray(i * width, (i + 1) * width));
  return rows.map((row) => String.fromCodePoint(...row.filter((point) => point)));
}
