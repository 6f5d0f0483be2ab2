import assert from "node:assert/strict";
import { test } from "node:test";
import { asTold, backoff, secondsLeft } from "../src/retry.ts";

test("a countdown shows whole seconds and ends at zero", () => {
  assert.equal(secondsLeft(10_000, 7_001), 3);
  assert.equal(secondsLeft(10_000, 9_999), 1);
  assert.equal(secondsLeft(10_000, 10_000), 0);
  assert.equal(secondsLeft(10_000, 99_000), 0);
});

test("the wait grows up to half a minute, and most of it is left to chance", () => {
  assert.equal(
    backoff(0, () => 1),
    500,
  );
  assert.equal(
    backoff(3, () => 1),
    4_000,
  );
  assert.equal(
    backoff(1000, () => 1),
    30_000,
  );
  assert.equal(
    backoff(1000, () => 0),
    6_000,
  );
});

test("a request is never repeated earlier than the server said", () => {
  assert.equal(
    asTold(2_000, () => 0),
    2_000,
  );
  assert.equal(
    asTold(2_000, () => 1),
    3_000,
  );
  assert.ok(asTold(0, () => 0) > 0);
});
