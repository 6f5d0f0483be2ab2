import assert from "node:assert/strict";
import { test } from "node:test";
import type { DescEnum, DescFile } from "@bufbuild/protobuf";
import { DenialReasonSchema } from "../gen/vaccination/approval/v1/appointment_pb.js";
import {
  file_vaccination_approval_v1_approval_events,
  RevocationReasonSchema,
} from "../gen/vaccination/approval/v1/approval_events_pb.js";
import * as approval from "../gen/vaccination/approval/v1/error_reason_pb.js";
import * as edge from "../gen/vaccination/edge/v1/error_reason_pb.js";
import * as mypage from "../gen/vaccination/mypage/v1/error_reason_pb.js";
import * as operations from "../gen/vaccination/operations/v1/error_reason_pb.js";
import * as reservation from "../gen/vaccination/reservation/v1/error_reason_pb.js";
import { file_vaccination_reservation_v1_reservation_events } from "../gen/vaccination/reservation/v1/reservation_events_pb.js";
import { ReservationStatusSchema } from "../gen/vaccination/reservation/v1/reservation_pb.js";
import * as vaccinemgmt from "../gen/vaccination/vaccinemgmt/v1/error_reason_pb.js";
import { MovementKindSchema, WriteOffReasonSchema } from "../gen/vaccination/vaccinemgmt/v1/lot_pb.js";
import { DoseChangeReasonSchema, VaccinationStatusSchema } from "../gen/vaccination/vaccinemgmt/v1/vaccination_pb.js";
import { file_vaccination_vaccinemgmt_v1_vaccinemgmt_events } from "../gen/vaccination/vaccinemgmt/v1/vaccinemgmt_events_pb.js";
import { statusName } from "../src/i18n.ts";
import {
  because,
  errorReason,
  event,
  movementKind,
  reservationStatus,
  texts,
  vaccinationStatus,
  writeOffReason,
} from "../src/texts.ts";

const names = (of: DescEnum, alsoUnspecified = true) =>
  of.values.map((value) => value.localName).filter((name) => alsoUnspecified || name !== "UNSPECIFIED");

function assertHas(table: object, wanted: string[], what: string): void {
  assert.deepEqual(
    wanted.filter((name) => !Object.hasOwn(table, name)),
    [],
    `${what} without a text`,
  );
}

test("every status has a text", () => {
  assertHas(reservationStatus, names(ReservationStatusSchema), "ReservationStatus");
  assertHas(vaccinationStatus, names(VaccinationStatusSchema), "VaccinationStatus");
});

test("every reason on a timeline has a text", () => {
  for (const each of [DenialReasonSchema, RevocationReasonSchema, DoseChangeReasonSchema])
    assertHas(because, names(each, false), each.name);
});

test("every event about a person has a text", () => {
  const files: DescFile[] = [
    file_vaccination_approval_v1_approval_events,
    file_vaccination_reservation_v1_reservation_events,
    file_vaccination_vaccinemgmt_v1_vaccinemgmt_events,
  ];
  const events = files
    .flatMap((file) => file.messages.map((message) => message.name))
    .filter((name) => name !== "StockMoved");
  assertHas(event, events, "events");
});

test("everything in a lot's ledger has a text", () => {
  assertHas(movementKind, names(MovementKindSchema), "MovementKind");
  assertHas(writeOffReason, names(WriteOffReasonSchema), "WriteOffReason");
});

test("every reason of an error has a text", () => {
  for (const each of [edge, approval, reservation, vaccinemgmt, mypage, operations])
    assertHas(errorReason, names(each.ErrorReasonSchema), each.ErrorReasonSchema.typeName);
});

test("every text is there in Korean and in English", () => {
  for (const table of [texts, errorReason, because, event, vaccinationStatus, movementKind]) {
    for (const [key, [ko, en]] of Object.entries(table) as [string, [unknown, unknown]][]) {
      assert.equal(typeof ko, typeof en, key);
      assert.ok(ko && en, key);
      if (typeof ko === "string" && key !== "language")
        assert.ok(/[가-힣]/.test(ko) && !/[가-힣]/.test(en as string), key);
    }
  }
});

test("a status that only a newer version knows is no bare number", () => {
  assert.equal(statusName("42"), "Being looked up");
  assert.equal(statusName("MOVED"), "Moved");
});
