import { createClient } from "@connectrpc/connect";
import { OperationsService } from "../../gen/vaccination/operations/v1/operations_service_pb.js";
import { transport } from "../api.ts";

export const SERVICES = ["reservation", "approval", "vaccinemgmt", "mypage"] as const;
export type Service = (typeof SERVICES)[number];

export const operations = createClient(OperationsService, transport);

/** The gateway finds the service by this header. */
export const at = (service: Service, signal?: AbortSignal) => ({ headers: { service }, ...(signal ? { signal } : {}) });
