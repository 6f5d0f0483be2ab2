import assert from "node:assert/strict";
import { test } from "node:test";
import { create } from "@bufbuild/protobuf";
import { MyReservationSchema } from "../gen/vaccination/mypage/v1/my_reservation_pb.js";
import { ReservationSchema, ReservationStatus as S } from "../gen/vaccination/reservation/v1/reservation_pb.js";
import { includes, shown } from "../src/customer/merge.ts";

const told = (status: S) => create(MyReservationSchema, { reservationId: "r", status, lotNumber: "L" });
const answered = (status: S) => create(ReservationSchema, { reservationId: "r", status, hospitalName: "H" });

test("what was answered is shown before the stream tells of it", () => {
  const [one] = shown([], [answered(S.APPROVED)]);
  assert.equal(one?.status, S.APPROVED);
  assert.equal(one?.hospitalName, "H");
});

test("the screen never shows less than what was answered", () => {
  const [one] = shown([told(S.COMPLETED)], [answered(S.CANCEL_REQUESTED)]);
  assert.equal(one?.status, S.CANCEL_REQUESTED);
  assert.equal(one?.lotNumber, "L");
});

test("the stream's state counts as soon as it includes the answer", () => {
  assert.ok(includes(told(S.CANCELLED), answered(S.CANCEL_REQUESTED)));
  assert.ok(includes(told(S.APPROVED), answered(S.COMPLETED)), "a dose may have been taken away since");
  assert.equal(shown([told(S.CANCELLED)], [answered(S.CANCEL_REQUESTED)])[0]?.status, S.CANCELLED);
});
