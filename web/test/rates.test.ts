import assert from "node:assert/strict";
import { test } from "node:test";
import { quantile, Rates } from "../src/operator/rates.ts";

test("a rate is known once a replica was heard twice", () => {
  const rates = new Rates();
  assert.equal(rates.at(0), null);
  rates.hear("a", 0, { booked: 100 });
  assert.equal(rates.at(0), null);
  rates.hear("a", 2, { booked: 106, refused: 1 });
  assert.deepEqual(rates.at(2), { booked: 3, refused: 0.5 });
});

test("each replica's rate is that of the time since it was last heard, and they are added up", () => {
  const rates = new Rates();
  rates.hear("a", 0, { booked: 10 });
  rates.hear("b", 2, { booked: 1000 });
  rates.hear("a", 4, { booked: 30 });
  assert.deepEqual(rates.at(4), { booked: 5 });
  rates.hear("b", 12, { booked: 1070 });
  assert.deepEqual(rates.at(12), { booked: 12 });
});

test("a counter that begins anew counts from nothing, and a replica that is new gives no leap", () => {
  const rates = new Rates();
  rates.hear("a", 0, { booked: 500 });
  rates.hear("a", 2, { booked: 4 });
  assert.deepEqual(rates.at(2), { booked: 2 });
  rates.hear("restarted", 4, { booked: 9000 });
  assert.deepEqual(rates.at(4), { booked: 2 });
});

test("a replica that is not heard for a minute no longer counts, and begins anew when it is back", () => {
  const rates = new Rates();
  rates.hear("a", 0, { booked: 0 });
  rates.hear("a", 2, { booked: 2 });
  assert.deepEqual(rates.at(62), { booked: 1 });
  assert.equal(rates.at(63), null);
  rates.hear("a", 100, { booked: 900 });
  assert.equal(rates.at(100), null);
  rates.hear("a", 102, { booked: 902 });
  assert.deepEqual(rates.at(102), { booked: 1 });
});

test("an answer that is older than the last one changes nothing", () => {
  const rates = new Rates();
  rates.hear("a", 0, { booked: 0 });
  rates.hear("a", 2, { booked: 2 });
  rates.hear("a", 2, { booked: 9 });
  rates.hear("a", 1, { booked: 1 });
  assert.deepEqual(rates.at(2), { booked: 1 });
});

test("a quantile grows evenly between two bounds", () => {
  const upTo = (...counts: number[]) => counts.map((count, index) => [[1, 2, 4, Infinity][index] ?? 0, count] as const);
  assert.equal(quantile(0.5, upTo(0, 10, 10, 10)), 1.5);
  assert.equal(quantile(0.99, upTo(50, 50, 100, 100).toReversed()), 3.96);
  assert.equal(quantile(0.5, upTo(8, 8, 8, 8)), 0.5);
  assert.equal(quantile(0.99, upTo(0, 0, 1, 10)), 4);
  assert.equal(quantile(0.99, upTo(0, 0, 0, 0)), null);
  assert.equal(quantile(0.99, []), null);
});
