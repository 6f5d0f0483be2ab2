import assert from "node:assert/strict";
import { test } from "node:test";
import { create } from "@bufbuild/protobuf";
import { Code, ConnectError } from "@connectrpc/connect";
import { ErrorInfoSchema, RetryInfoSchema } from "../gen/google/rpc/error_details_pb.js";
import { type Answer, type Ask, Asks } from "../src/asks.ts";

const busy = new ConnectError("busy", Code.ResourceExhausted, undefined, [
  {
    desc: ErrorInfoSchema,
    value: create(ErrorInfoSchema, { domain: "vaccination.reservation", reason: "APPROVAL_BUSY" }),
  },
  { desc: RetryInfoSchema, value: create(RetryInfoSchema, { retryDelay: { seconds: 2n } }) },
]);
const lost = new ConnectError("gone", Code.Unavailable);
const refused = new ConnectError("no", Code.NotFound, undefined, [
  { desc: ErrorInfoSchema, value: create(ErrorInfoSchema, { domain: "d", reason: "UNKNOWN_HOSPITAL" }) },
]);
const ASK: Ask = { id: "1", kind: "create", request: { requestId: "1", date: "2027-01-04" }, about: {} };

/** A tab: storage, and timers that run when the test says so. */
class Tab {
  readonly kept = new Map<string, string>();
  readonly sent: Ask[] = [];
  readonly waits: { milliseconds: number; work: () => void }[] = [];
  answers: (string | Error | Promise<string>)[] = [];
  time = 0;
  open(): Asks<string> {
    return new Asks<string>({
      storage: {
        getItem: (key) => this.kept.get(key) ?? null,
        setItem: (key, value) => void this.kept.set(key, value),
        removeItem: (key) => void this.kept.delete(key),
      },
      send: async (ask) => {
        this.sent.push(ask);
        const answer = this.answers.shift() ?? lost;
        if (answer instanceof Error) throw answer;
        return answer;
      },
      now: () => this.time,
      after: (milliseconds, work) => {
        const wait = { milliseconds, work };
        this.waits.push(wait);
        return () => void this.waits.splice(this.waits.indexOf(wait), 1);
      },
      random: () => 0,
    });
  }
  tick(): void {
    this.waits.shift()?.work();
  }
}

/** An answer that comes when the test says so. */
function later() {
  let resolve: (answer: string) => void = () => {};
  let reject: (error: Error) => void = () => {};
  const promise = new Promise<string>((...both) => ([resolve, reject] = both));
  return { promise, resolve, reject };
}

const settled = () => new Promise((resolve) => setImmediate(resolve));

test("a busy service is asked again with the same request when it said so", async () => {
  const tab = new Tab();
  tab.answers = [busy, "yes"];
  const asks = tab.open();
  asks.resume("minji");
  const answer = asks.ask(ASK);
  await settled();
  assert.equal(asks.pending.get()[0]?.waiting?.why, "busy");
  assert.equal(tab.waits[0]?.milliseconds, 2000);
  tab.tick();
  assert.equal(((await answer) as { answer: string }).answer, "yes");
  assert.deepEqual(
    tab.sent.map((ask) => ask.request),
    [ASK.request, ASK.request],
  );
  assert.equal(tab.kept.size, 0);
});

test("after a reload the same request goes on, for its owner alone", async () => {
  const tab = new Tab();
  tab.answers = [busy, "yes"];
  const before = tab.open();
  before.resume("minji");
  void before.ask(ASK);
  await settled();
  tab.waits.length = 0; // the page is left

  const others = tab.open();
  others.resume("joon");
  assert.equal(others.pending.get().length, 0);

  const after = tab.open();
  const answers: Answer<string>[] = [];
  after.onAnswer = (answer) => answers.push(answer);
  after.resume("minji");
  tab.tick();
  await settled();
  assert.deepEqual(
    answers.map((answer) => [answer.ask.id, "answer" in answer]),
    [["1", true]],
  );
  assert.deepEqual(tab.sent[1]?.request, ASK.request);
});

test("a second click joins the request that is under way", async () => {
  const tab = new Tab();
  tab.answers = [busy, "yes"];
  const asks = tab.open();
  const both = [asks.ask(ASK), asks.ask({ ...ASK, id: "2", request: { requestId: "2", date: "2027-01-04" } })];
  await settled();
  tab.tick();
  assert.deepEqual(
    (await Promise.all(both)).map((answer) => answer.ask.id),
    ["1", "1"],
  );
  assert.equal(tab.sent.length, 2);
});

test("a request whose answer was lost is repeated at once when the connection is back", async () => {
  const tab = new Tab();
  tab.answers = [lost, "yes"];
  const asks = tab.open();
  const answer = asks.ask(ASK);
  await settled();
  assert.equal(asks.pending.get()[0]?.waiting?.why, "lost");
  asks.hurry();
  assert.ok("answer" in (await answer));
  assert.equal(tab.waits.length, 0);
});

test("a refusal is an answer", async () => {
  const tab = new Tab();
  tab.answers = [refused];
  const asks = tab.open();
  const answer = await asks.ask(ASK);
  assert.equal("refused" in answer && answer.refused.reason, "UNKNOWN_HOSPITAL");
  assert.equal(asks.pending.get().length, 0);
});

test("what was stopped is not repeated", async () => {
  const tab = new Tab();
  tab.answers = [busy];
  const asks = tab.open();
  const answer = asks.ask(ASK);
  await settled();
  asks.stop("1");
  assert.ok("stopped" in (await answer));
  assert.equal(tab.waits.length, 0);
});

test("what is being sent when the connection comes back is not sent twice, and not after a stop", async () => {
  const tab = new Tab();
  const late = later();
  tab.answers = [lost, late.promise];
  const asks = tab.open();
  void asks.ask(ASK);
  await settled();
  tab.tick();
  asks.hurry();
  assert.equal(tab.sent.length, 2);
  late.reject(lost);
  await settled();
  assert.equal(tab.waits.length, 1);
  asks.stop("1");
  assert.equal(tab.waits.length, 0);
});

test("what was answered after it was stopped is told all the same", async () => {
  const tab = new Tab();
  const late = later();
  tab.answers = [busy, late.promise];
  const asks = tab.open();
  const answers: Answer<string>[] = [];
  asks.onAnswer = (answer) => answers.push(answer);
  void asks.ask(ASK);
  await settled();
  tab.tick();
  asks.stop("1");
  late.resolve("yes");
  await settled();
  assert.deepEqual(
    answers.map((answer) => "answer" in answer),
    [false, true],
  );
});

test("a device whose clock was put back does not wait longer than it was told", async () => {
  const tab = new Tab();
  tab.time = 86_400_000;
  tab.answers = [busy];
  const before = tab.open();
  before.resume("minji");
  void before.ask(ASK);
  await settled();
  tab.waits.length = 0;
  tab.time = 0;
  tab.open().resume("minji");
  assert.equal(tab.waits[0]?.milliseconds, 2000);
});

test("a tab that is opened again long after does not do what was asked for then, and says so", async () => {
  const tab = new Tab();
  tab.answers = [busy];
  const before = tab.open();
  before.resume("minji");
  void before.ask(ASK);
  await settled();
  tab.waits.length = 0;
  tab.time = 61 * 60_000;
  const after = tab.open();
  const answers: Answer<string>[] = [];
  after.onAnswer = (answer) => answers.push(answer);
  after.resume("minji");
  await settled();
  assert.equal(tab.sent.length, 1);
  assert.deepEqual(
    answers.map((answer) => "stopped" in answer),
    [true],
  );
  assert.equal(tab.kept.size, 0);
});
