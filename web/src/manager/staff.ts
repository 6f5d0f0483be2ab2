import { createClient } from "@connectrpc/connect";
import type { Hospital } from "../../gen/vaccination/approval/v1/hospital_pb.js";
import { CounterService } from "../../gen/vaccination/vaccinemgmt/v1/counter_service_pb.js";
import { RecallService } from "../../gen/vaccination/vaccinemgmt/v1/recall_service_pb.js";
import { VaccinemgmtService } from "../../gen/vaccination/vaccinemgmt/v1/vaccinemgmt_service_pb.js";
import type { Lot } from "../../gen/vaccination/vaccinemgmt/v1/lot_pb.js";
import { transport } from "../api.ts";
import { type Loaded, useAll } from "../hooks.ts";

export const counter = createClient(CounterService, transport);
export const stock = createClient(VaccinemgmtService, transport);
export const recalls = createClient(RecallService, transport);

/** The hospital that the screens are about. */
export interface Here {
  hospital: Hospital;
}

/** All lots of a hospital, first to expire first. */
export function useLots(hospitalId: string): Loaded<Lot[]> {
  return useAll(
    (which, signal) => stock.listLots({ hospitalId, ...which }, { signal }),
    (page) => page.lots,
    [hospitalId],
  );
}
