import assert from "node:assert/strict";
import { test } from "node:test";
import { Code, ConnectError } from "@connectrpc/connect";
import { type Connection, Following } from "../src/follow.ts";

test("a stream that breaks is opened again, later each time, until it tells something", async () => {
  const waits: number[] = [];
  const states: Connection[] = [];
  const told: number[] = [];
  let opened = 0;
  await new Promise<void>((resolve) => {
    const following = new Following<number>(
      async function* () {
        opened += 1;
        if (opened === 3) yield 7;
        if (opened === 5) {
          following.stop();
          resolve();
          return;
        }
        throw new ConnectError("gone", Code.Unavailable);
      },
      (message) => told.push(message),
      (state) => states.push(state),
      { random: () => 1, sleep: async (milliseconds) => void waits.push(milliseconds) },
    );
  });
  assert.deepEqual(waits, [500, 1000, 500, 1000]);
  assert.deepEqual(told, [7]);
  assert.deepEqual(states, ["connecting", "lost", "lost", "live", "lost", "lost"]);
});

test("a stream that ends because its token has expired is opened again at once", async () => {
  const waits: number[] = [];
  let opened = 0;
  await new Promise<void>((resolve) => {
    const following = new Following<number>(
      async function* () {
        opened += 1;
        if (opened === 1) throw new ConnectError("expired", Code.Unauthenticated);
        following.stop();
        resolve();
      },
      () => {},
      () => {},
      { random: () => 1, sleep: async (milliseconds) => void waits.push(milliseconds) },
    );
  });
  assert.equal(opened, 2);
  assert.deepEqual(waits, []);
});

test("pages whose streams a stopping replica ends at one moment do not return at one", async () => {
  const waits: number[] = [];
  for (const random of [0, 1]) {
    await new Promise<void>((resolve) => {
      const following = new Following<number>(
        async function* () {
          yield 7;
        },
        () => {},
        () => {},
        {
          random: () => random,
          sleep: async (milliseconds) => {
            waits.push(milliseconds);
            following.stop();
            resolve();
          },
        },
      );
    });
  }
  assert.deepEqual(waits, [100, 500]);
});
