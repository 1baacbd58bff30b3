// Run a model in onnxruntime-web (WASM): node run.mjs FOLDER
// FOLDER holds model.onnx, inputs.json ([{name, type, dims}]) and each input's little-endian values in NAME.bin;
// outputs.json and the outputs' NAME.bin are written beside them.
import { readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import * as ort from "onnxruntime-web";

const arrays = { uint8: Uint8Array, int32: Int32Array, float32: Float32Array };
const folder = process.argv[2];
const feeds = {};
for (const { name, type, dims } of JSON.parse(readFileSync(join(folder, "inputs.json")))) {
  const bytes = Uint8Array.from(readFileSync(join(folder, `${name}.bin`)));
  feeds[name] = new ort.Tensor(type, new arrays[type](bytes.buffer), dims);
}

ort.env.wasm.numThreads = 1;
const session = await ort.InferenceSession.create(readFileSync(join(folder, "model.onnx")), {
  executionProviders: ["wasm"],
});
const outputs = Object.entries(await session.run(feeds));
for (const [name, { data }] of outputs) {
  writeFileSync(join(folder, `${name}.bin`), new Uint8Array(data.buffer, data.byteOffset, data.byteLength));
}
const described = outputs.map(([name, { type, dims }]) => ({ name, type, dims }));
writeFileSync(join(folder, "outputs.json"), JSON.stringify(described));
