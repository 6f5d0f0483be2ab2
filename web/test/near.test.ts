import assert from "node:assert/strict";
import { test } from "node:test";
import { kilometres, roughly } from "../src/near.ts";

const seoul = { latitude: 37.5665, longitude: 126.978 };

test("where somebody is leaves the page with two decimals", () => {
  assert.deepEqual(roughly({ latitude: 37.566512, longitude: -126.97899 }), { latitude: 37.57, longitude: -126.98 });
});

test("a distance is that of the great circle, in whole kilometres, and at least one", () => {
  assert.equal(kilometres(seoul, seoul), 1);
  assert.equal(kilometres(seoul, { latitude: 35.1796, longitude: 129.0756 }), 325);
  assert.equal(kilometres({ latitude: 0, longitude: 179.5 }, { latitude: 0, longitude: -179.5 }), 111);
  assert.equal(kilometres({ latitude: 90, longitude: 0 }, { latitude: -90, longitude: 77 }), 20015);
});
