import assert from "node:assert/strict";
import { test } from "node:test";
import { create } from "@bufbuild/protobuf";
import { LotSchema } from "../gen/vaccination/vaccinemgmt/v1/lot_pb.js";
import { VaccinationSchema } from "../gen/vaccination/vaccinemgmt/v1/vaccination_pb.js";
import { lotNumberOf, onAdminister, unusable } from "../src/manager/stock.ts";

const lot = (more: object = {}) =>
  create(LotSchema, {
    lotId: "a",
    lotNumber: "A",
    vaccineCode: "08",
    productionDate: "2027-01-01",
    expiryDate: "2027-02-01",
    free: 1,
    reserved: 3,
    administered: 5,
    ...more,
  });
const booking = (more: object = {}) =>
  create(VaccinationSchema, { date: "2027-01-04", requestedVaccineCode: "8", ...more });

test("a lot is usable within its dates, for the vaccine asked for, while it has doses and is not withdrawn", () => {
  assert.equal(unusable(lot(), booking(), false), null);
  assert.equal(unusable(lot({ withdrawn: "recalled" }), booking(), false), "isWithdrawn");
  assert.equal(unusable(lot(), booking({ date: "2027-02-02" }), false), "tooOld");
  assert.equal(unusable(lot(), booking({ requestedVaccineCode: "207" }), false), "otherVaccine");
  assert.equal(unusable(lot({ free: 0 }), booking(), false), "isEmpty");
  assert.equal(
    unusable(lot({ free: 0 }), booking(), true),
    null,
    "at the counter a dose that is set aside may be given",
  );
});

test("what is shown before a dose is recorded adds up", () => {
  const own = onAdminister(lot(), create(VaccinationSchema, { dose: { lotId: "a" } }).dose, [lot()]);
  assert.deepEqual(
    own.map((one) => one.effect),
    ["reservedEffect", "givenEffect"],
  );
  const other = onAdminister(lot({ free: 0 }), create(VaccinationSchema, { dose: { lotId: "b" } }).dose, [
    lot(),
    lot({ lotId: "b", lotNumber: "B" }),
  ]);
  assert.deepEqual(
    other.map((one) => one.effect),
    ["lastBookingChanges", "givenEffect", "freeEffect"],
  );
});

test("the lot number is read from a scanned GS1 code", () => {
  assert.equal(lotNumberOf("JN-P26A1"), "JN-P26A1");
  assert.equal(lotNumberOf("(01)08806500000000(17)270110(10)JN-P26A1"), "JN-P26A1");
  assert.equal(lotNumberOf("]d2010880650000000017270110" + "10JN-P26A1\u001d21123"), "JN-P26A1");
  assert.equal(lotNumberOf("010880650000000021123\u001d10JN-P26A1"), "JN-P26A1");
});
