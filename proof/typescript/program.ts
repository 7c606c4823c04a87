// What a program in TypeScript does with the client that is generated from a node's /openapi.json: every path, field and
// answer here is checked by the compiler against that document. argv[2]: a node's address.
import createClient from "openapi-fetch";
import type { components, paths } from "./schema.js";

type Document = components["schemas"]["Document"];
type End = components["schemas"]["ExportEnd"];
type Problem = components["schemas"]["Problem"];
declare const process: { argv: string[]; exit(code: number): never };

const client = createClient<paths>({ baseUrl: process.argv[2] ?? "http://127.0.0.1:6001" });
const path = { collection: "typed" };

function check(holds: boolean, what: string): asserts holds {
  if (!holds) {
    console.error(`not so: ${what}`);
    process.exit(1);
  }
}

function done<T>(answer: { data?: T; error?: Problem; response: Response }): T {
  check(answer.data !== undefined, `${answer.response.status} ${answer.error?.code}: ${answer.error?.detail}`);
  return answer.data;
}

const made = done(await client.POST("/v1/collections", { body: { name: "typed", dimensions: 4, metric: "l2" } }));
check(made.name === "typed" && made.dimensions === 4, "the collection is made");

const inserted = done(
  await client.POST("/v1/collections/{collection}/insert", {
    params: { path, header: { "idempotency-key": "a-batch" } },
    body: { ids: ["a", "b"], vectors: [[1, 0, 0, 0], [0, 1, 0, 0]], metadatas: [{ year: 1950 }, { year: 1969 }] },
  }),
);
check(inserted.written === 2 && inserted.failed.length === 0, "both are written");

const document = { path: { ...path, id: "c/with a slash" }, header: { "idempotency-key": "one-put" } };
const body = { vector: [0, 0, 1, 0], metadata: { year: 1984 } };
const first = done(await client.PUT("/v1/collections/{collection}/documents/{id}", { params: document, body }));
const again = done(await client.PUT("/v1/collections/{collection}/documents/{id}", { params: document, body }));
check(first.version === again.version && !again.existed, "a request that is sent again is executed once");

const found = done(
  await client.POST("/v1/collections/{collection}/search", {
    params: { path },
    body: { vector: [0, 0.9, 0, 0], k: 2, filter: { year: { $gte: 1960 } } },
  }),
);
check(found.hits[0]?.id === "b" && found.hits.length === 2, "the nearest is found");
check(typeof found.hits[0].score === "number", "it has a score");

const one = done(
  await client.GET("/v1/collections/{collection}/documents/{id}", {
    params: { path: { ...path, id: "a" }, query: { with_vectors: true } },
  }),
);
check(Array.isArray(one.vector) && one.vector[0] === 1, "a document has its vector");

const { data: lines } = await client.POST("/v1/collections/{collection}/export", {
  params: { path },
  body: {},
  parseAs: "text",
});
const rows = String(lines).trim().split("\n").map((line) => JSON.parse(line) as Document | End);
const end = rows.pop();
check(end !== undefined && "end" in end && end.end === "complete" && end.documents === 3, "an export is complete");
check(rows.every((row) => "id" in row), "and has a document a line");

const refused = await client.POST("/v1/collections/{collection}/search", { params: { path }, body: { vector: [1] } });
check(refused.error?.code === "invalid_argument" && refused.error.status === 400, "a wrong vector is refused");
// @ts-expect-error  no such code is documented
check(refused.error.code !== "no_such_code", "codes are a closed set");
// @ts-expect-error  a filter is an object, and the compiler knows
const wrong = await client.POST("/v1/collections/{collection}/count", { params: { path }, body: { filter: 7 } });
check(wrong.error?.code === "invalid_argument", "and so does the node");

const gone = done(
  await client.DELETE("/v1/collections/{collection}/documents/{id}", { params: { path: { ...path, id: "a" } } }),
);
check(gone.existed && gone.count === 1, "a document is deleted");
const missing = await client.GET("/v1/collections/{collection}/documents/{id}", {
  params: { path: { ...path, id: "a" } },
});
check(missing.response.status === 404 && missing.error?.code === "document_not_found", "and is not there any more");
check(done(await client.DELETE("/v1/collections/{collection}", { params: { path } })).existed, "all is dropped");
console.log("create, insert, search, get, export, delete: as the document says");
