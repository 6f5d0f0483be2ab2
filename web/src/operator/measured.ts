import type { GetMetricsResponse, Sample } from "../../gen/vaccination/operations/v1/operations_service_pb.js";
import { type Counts, quantile, Rates } from "./rates.ts";
import { at, operations, type Service } from "./services.ts";

/** Per second, and seconds; null: not known, or nobody was completed. */
export interface Measured {
  bookings: number | null;
  completions: number | null;
  denied: number | null;
  turnedAway: number | null;
  mean: number | null;
  p99: number | null;
}

const PUBLISHED = "events_published_total";
const REFUSALS = "rpc_refusals_total";
const SECONDS = "reservation_completion_seconds";
const BUCKET = `${SECONDS}_bucket`;
const EVENTS: Record<string, string> = {
  "vaccination.approval.v1.ApprovalGranted": "bookings",
  "vaccination.approval.v1.ApprovalDenied": "denied",
  "vaccination.vaccinemgmt.v1.ReservationCompleted": "completions",
};
const ASKED: [service: Service, names: string[]][] = [
  ["reservation", [REFUSALS, `${SECONDS}_sum`, `${SECONDS}_count`, BUCKET]],
  ["approval", [PUBLISHED]],
  ["vaccinemgmt", [PUBLISHED]],
];

/** What a sample counts here; empty for others. */
function counted({ name, labels }: Sample): string {
  if (name === PUBLISHED) return EVENTS[labels.subject ?? ""] ?? "";
  if (name === REFUSALS) return labels.reason === "APPROVAL_BUSY" ? "turnedAway" : "";
  return name === BUCKET ? `${BUCKET} ${labels.le}` : name;
}

function counts(answer: GetMetricsResponse, service: Service): Counts {
  const sum = { ...ALWAYS[service] };
  for (const sample of answer.samples) {
    const what = counted(sample);
    if (what) sum[what] = (sum[what] ?? 0) + sample.value;
  }
  return sum;
}

// What has never happened has no sample, and is not unknown.
const ALWAYS: Record<Service, Record<string, number>> = {
  reservation: { turnedAway: 0 },
  approval: { bookings: 0, denied: 0 },
  vaccinemgmt: { completions: 0 },
  mypage: {},
};

const rates = new Map(ASKED.map(([service]) => [service, new Rates()]));

/** Asks the services what they have measured. One that does not answer, or is too old to know, has no values. */
export async function measure(): Promise<Measured> {
  const known = await Promise.all(
    ASKED.map(async ([service, names]) => {
      const answer = await operations
        .getMetrics({ service, names }, { ...at(service), timeoutMs: 5000 })
        .catch(() => null);
      const now = Date.now() / 1000;
      if (answer) rates.get(service)?.hear(answer.replica, now, counts(answer, service));
      return rates.get(service)?.at(now) ?? {};
    }),
  );
  const all: Counts = Object.assign({}, ...known);
  const of = (name: string) => all[name] ?? null;
  const completed = of(`${SECONDS}_count`);
  const buckets = Object.entries(all)
    .filter(([name]) => name.startsWith(BUCKET))
    .map(([name, rate]) => [bound(name.slice(BUCKET.length + 1)), rate] as const);
  return {
    bookings: of("bookings"),
    completions: of("completions"),
    denied: of("denied"),
    turnedAway: of("turnedAway"),
    mean: completed ? (of(`${SECONDS}_sum`) ?? 0) / completed : null,
    p99: quantile(0.99, buckets),
  };
}

const bound = (le: string) => (le === "+Inf" ? Infinity : Number(le));
