import type { GetStatusResponse } from "../../gen/vaccination/operations/v1/operations_service_pb.js";
import { Value } from "../value.ts";
import { type Measured, measure } from "./measured.ts";
import { at, operations, SERVICES, type Service } from "./services.ts";

const EVERY = 2000;
const KEPT = 300; // ten minutes

/** What the services said at one moment; null: no answer. */
export interface Sample {
  /** Seconds since 1970. */
  time: number;
  of: Record<Service, GetStatusResponse | null>;
  measured: Measured;
}

export const samples = new Value<readonly Sample[]>([]);

let watchers = 0;
let timer = 0;
let sampling = false;

async function sample(): Promise<void> {
  const asked = SERVICES.map((service) =>
    operations.getStatus({ service }, { ...at(service), timeoutMs: 5000 }).catch(() => null),
  );
  const [measured, ...answers] = await Promise.all([measure(), ...asked]);
  const of = Object.fromEntries(SERVICES.map((service, index) => [service, answers[index] ?? null])) as Sample["of"];
  samples.set([...samples.get().slice(1 - KEPT), { time: Date.now() / 1000, of, measured }]);
}

async function loop(): Promise<void> {
  if (sampling) return; // whoever left and came back meanwhile finds it going on
  sampling = true;
  if (document.visibilityState === "visible") await sample();
  sampling = false;
  if (watchers) timer = window.setTimeout(() => void loop(), EVERY);
}

/** Asks the services again and again until the function that is returned is called. */
export function watch(): () => void {
  watchers += 1;
  if (watchers === 1) void loop();
  return () => {
    watchers -= 1;
    if (!watchers) clearTimeout(timer);
  };
}
