// Books as a customer does, with a client made of a release's contracts alone, and prints what the gateway answers.

import { randomUUID } from "node:crypto";
import { ConnectError, createClient, type Client, type Interceptor } from "@connectrpc/connect";
import { createGrpcTransport } from "@connectrpc/connect-node";
import { ErrorInfoSchema } from "./gen/google/rpc/error_details_pb.js";
import type { MyReservation } from "./gen/vaccination/mypage/v1/my_reservation_pb.js";
import { MypageService } from "./gen/vaccination/mypage/v1/mypage_service_pb.js";
import { ReservationStatus } from "./gen/vaccination/reservation/v1/reservation_pb.js";
import { ReservationService } from "./gen/vaccination/reservation/v1/reservation_service_pb.js";

const { GATEWAY = "", TOKEN = "", HOSPITAL = "", DAY = "" } = process.env;

const authorized: Interceptor = (next) => (request) => {
  request.header.set("authorization", `Bearer ${TOKEN}`);
  return next(request);
};
const transport = createGrpcTransport({
  baseUrl: `http://${GATEWAY}`,
  interceptors: [authorized],
  defaultTimeoutMs: 60_000,
});
const reservations = createClient(ReservationService, transport);

/** Watches the customer's screen until the reservation has its dose. */
async function completed(screen: Client<typeof MypageService>, id: string): Promise<MyReservation> {
  for await (const told of screen.watchMyReservations({})) {
    const shown = told.reservations.find((one) => one.reservationId === id);
    if (shown?.status === ReservationStatus.COMPLETED) return shown;
  }
  throw new Error(`${id} was not completed`);
}

/** What a program acts on when a call is refused. */
async function reason(call: Promise<unknown>): Promise<string> {
  const refused = await call.then(() => undefined, ConnectError.from);
  return refused?.findDetails(ErrorInfoSchema)[0]?.reason ?? "";
}

const request = { requestId: randomUUID(), hospitalId: HOSPITAL, date: DAY };
const made = (await reservations.createReservation(request)).reservation!;
const again = (await reservations.createReservation(request)).reservation!;
const shown = await completed(createClient(MypageService, transport), made.reservationId);
const answer = {
  decided: `RESERVATION_STATUS_${ReservationStatus[made.status]}`,
  repeated: again.reservationId === made.reservationId,
  screen: `RESERVATION_STATUS_${ReservationStatus[shown.status]}`,
  lot: shown.lotNumber,
  refusal: await reason(
    reservations.createReservation({ requestId: randomUUID(), hospitalId: "nowhere", date: DAY }),
  ),
};
console.log(JSON.stringify(answer));
