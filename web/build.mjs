// Makes web/dist from the sources: generates the contracts' code, type-checks, tests, bundles, and writes dist.stamp.
//
//   node build.mjs          all of that
//   node build.mjs test     without the bundle
//   node build.mjs watch    bundles, and bundles again at every change; neither type-checks nor tests
//
// `python -m mesh.contracts` has to run before: the compiled contracts are read from vaccination/image.binpb.

import { spawnSync } from "node:child_process";
import { createHash } from "node:crypto";
import { mkdirSync, readdirSync, readFileSync, rmSync, statSync, writeFileSync } from "node:fs";
import { createRequire } from "node:module";
import { dirname, join, relative, sep } from "node:path";
import { gzipSync } from "node:zlib";
import { create, fromBinary, toBinary } from "@bufbuild/protobuf";
import {
  CodeGeneratorRequestSchema,
  CodeGeneratorResponseSchema,
  FileDescriptorSetSchema,
} from "@bufbuild/protobuf/wkt";
import * as esbuild from "esbuild";

const WEB = import.meta.dirname;
const ROOT = dirname(WEB);
const GEN = join(WEB, "gen");
const DIST = join(WEB, "dist");
const require = createRequire(import.meta.url);

// Annotations for servers. Without them the page need not carry the descriptors that they are declared in.
const FOR_SERVERS = /^(buf\/validate\/|google\/api\/)/;

function generate() {
  const image = fromBinary(FileDescriptorSetSchema, readFileSync(join(ROOT, "vaccination", "image.binpb")));
  const files = image.file.filter((file) => !FOR_SERVERS.test(file.name));
  for (const file of files) strip(file);
  const wanted = files.map((file) => file.name).filter((name) => /^(vaccination|google\/rpc)\//.test(name));
  // JavaScript with declarations, not TypeScript: Node runs it in tests as it is.
  const request = create(CodeGeneratorRequestSchema, {
    fileToGenerate: wanted,
    parameter: "target=js+dts,import_extension=js",
    protoFile: files,
  });
  const plugin = join(dirname(require.resolve("@bufbuild/protoc-gen-es/package.json")), "bin", "protoc-gen-es");
  const made = spawnSync(process.execPath, [plugin], {
    input: toBinary(CodeGeneratorRequestSchema, request),
    maxBuffer: 1 << 26,
  });
  if (made.status !== 0) throw new Error(`protoc-gen-es: ${made.stderr}`);
  const response = fromBinary(CodeGeneratorResponseSchema, made.stdout);
  if (response.error) throw new Error(response.error);
  rmSync(GEN, { recursive: true, force: true });
  for (const file of response.file) {
    const path = join(GEN, file.name);
    mkdirSync(dirname(path), { recursive: true });
    writeFileSync(path, file.content);
  }
}

function strip(file) {
  file.dependency = file.dependency.filter((name) => !FOR_SERVERS.test(name));
  file.options = undefined;
  file.sourceCodeInfo = undefined;
  const messages = [...file.messageType];
  for (const message of messages) {
    messages.push(...message.nestedType);
    for (const field of message.field) field.options = undefined;
    for (const oneof of message.oneofDecl) oneof.options = undefined;
  }
  for (const service of file.service) {
    for (const method of service.method) method.options = undefined;
  }
}

function run(...args) {
  const { status } = spawnSync(process.execPath, args, { cwd: WEB, stdio: "inherit" });
  if (status !== 0) process.exit(status ?? 1);
}

const check = () => run(join(dirname(require.resolve("typescript/package.json")), "bin", "tsc"));
const test = () => run("--test", "--test-reporter=dot", "test/*.test.ts");

const options = {
  absWorkingDir: WEB,
  entryPoints: { main: "src/main.tsx", icon: "src/icon.svg" },
  outdir: join(DIST, "assets"),
  entryNames: "[name]-[hash]",
  chunkNames: "[name]-[hash]",
  assetNames: "[name]-[hash]",
  bundle: true,
  splitting: true,
  format: "esm",
  target: "es2022",
  jsx: "automatic",
  jsxImportSource: "preact",
  loader: { ".svg": "copy" },
  minify: true,
  legalComments: "none",
  charset: "utf8",
  metafile: true,
  logLevel: "info",
};

// index.html names the hashed files; everything else may be kept by caches for ever.
const writeIndex = {
  name: "index",
  setup(build) {
    build.onEnd((result) => {
      if (!result.metafile) return;
      const outputs = Object.entries(result.metafile.outputs);
      const named = (source) => {
        const [path] = outputs.find(([, output]) => output.entryPoint === source);
        return `/${relative(DIST, join(WEB, path)).split(sep).join("/")}`;
      };
      const main = outputs.find(([, output]) => output.entryPoint === "src/main.tsx");
      const styles = `/${relative(DIST, join(WEB, main[1].cssBundle)).split(sep).join("/")}`;
      const chunks = main[1].imports
        .filter((one) => one.kind === "import-statement")
        .map((one) => `<link rel="modulepreload" href="/assets/${one.path.split("/").at(-1)}">\n  `);
      const page = readFileSync(join(WEB, "src", "index.html"), "utf8")
        .replace("<!--chunks-->", chunks.join(""))
        .replace("ICON", named("src/icon.svg"))
        .replace("STYLES", styles)
        .replace("MAIN", named("src/main.tsx"));
      writeFileSync(join(DIST, "index.html"), page);
    });
  },
};

// The licences of what is bundled ask that they go with it.
function licenses() {
  const { dependencies } = JSON.parse(readFileSync(join(WEB, "package.json"), "utf8"));
  const texts = Object.keys(dependencies).map((name) => {
    const folder = join(WEB, "node_modules", name);
    const { version, license } = JSON.parse(readFileSync(join(folder, "package.json"), "utf8"));
    const file = readdirSync(folder).find((each) => /^licen[cs]e/i.test(each));
    return `${name} ${version}: ${license}\n${file ? `\n${readFileSync(join(folder, file), "utf8").trim()}\n` : ""}`;
  });
  writeFileSync(join(DIST, "licenses.txt"), texts.join(`\n${"-".repeat(80)}\n\n`));
}

function sizes() {
  const gzipped = (path) => gzipSync(readFileSync(path), { level: 6 }).length;
  const index = readFileSync(join(DIST, "index.html"), "utf8");
  const first = ["/index.html", ...index.matchAll(/\/assets\/[\w.-]+/g).map(([path]) => path)];
  const bytes = first.map((path) => gzipped(join(DIST, path)));
  for (const name of readdirSync(join(DIST, "assets")).sort()) {
    console.log(`  ${String(gzipped(join(DIST, "assets", name))).padStart(7)} B gzip  ${name}`);
  }
  console.log(`first load: ${bytes.reduce((sum, one) => sum + one, 0)} B gzip`);
}

// Every file that dist depends on. A test computes the same in Python: sha256 over "PATH\nSHA256 OF THE CONTENT\n" of
// each file, with paths relative to the repository in order of their bytes.
function stamp() {
  const under = (folder) =>
    readdirSync(join(ROOT, folder), { recursive: true })
      .map((name) => `${folder}/${name.split(sep).join("/")}`)
      .filter((path) => statSync(join(ROOT, path)).isFile());
  const inputs = [
    ...["build.mjs", "package.json", "package-lock.json", "tsconfig.json"].map((name) => `web/${name}`),
    ...under("web/src"),
    ...under("protos"),
  ];
  const sha256 = (content) => createHash("sha256").update(content).digest("hex");
  const lines = inputs
    .sort((a, b) => Buffer.compare(Buffer.from(a), Buffer.from(b)))
    .map((path) => `${path}\n${sha256(readFileSync(join(ROOT, path)))}\n`);
  writeFileSync(join(WEB, "dist.stamp"), `${sha256(lines.join(""))}\n`);
}

generate();
const command = process.argv[2] ?? "build";
if (command !== "watch") {
  check();
  test();
}
if (command === "build") {
  rmSync(DIST, { recursive: true, force: true });
  await esbuild.build({ ...options, plugins: [writeIndex] });
  licenses();
  stamp();
  sizes();
}
if (command === "watch") {
  mkdirSync(DIST, { recursive: true });
  await (await esbuild.context({ ...options, plugins: [writeIndex] })).watch();
}
