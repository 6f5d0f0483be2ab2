import { useState } from "preact/hooks";
import { DenialReason } from "../../gen/vaccination/approval/v1/appointment_pb.js";
import type { MyReservation } from "../../gen/vaccination/mypage/v1/my_reservation_pb.js";
import { ReservationStatus } from "../../gen/vaccination/reservation/v1/reservation_pb.js";
import { dayIn } from "../days.ts";
import { useValue } from "../hooks.ts";
import { explain, longDay, nameOf, reasonText, statusMeaning, statusName, t, vaccineName } from "../i18n.ts";
import { refusal } from "../refusal.ts";
import { Badge, Button, Empty, Heading, Link, Loading, type Tone } from "../ui/parts.tsx";
import { say } from "../ui/toast.tsx";
import { asks, isBooking, mine, readEarlier } from "./mine.ts";
import { isCurrent } from "./merge.ts";

const STREAMED = 100;

export function Home() {
  const { all } = useValue(mine);
  const pending = useValue(asks.pending);
  const [earlier, setEarlier] = useState({ token: "", done: false });
  if (!all)
    return (
      <>
        <Heading>{t("myBooking")}</Heading>
        <Loading />
      </>
    );
  const current = all.filter((one) => isCurrent(one) && one.date >= dayIn(one.timeZone, Date.now()));
  const others = all.filter((one) => !current.includes(one));
  const mayBook = !current.length && !isBooking(pending);
  return (
    <>
      <Heading>{t("myBooking")}</Heading>
      {current.map((one) => (
        <Current key={one.reservationId} one={one} />
      ))}
      {!current.length && !pending.length && (
        <Empty title={t(all.length ? "noActive" : "noBooking")}>
          <p>{t("noBookingText")}</p>
          {mayBook && (
            <Link href="/customer/book" class="button main large">
              {t(all.length ? "bookAgain" : "book")}
            </Link>
          )}
        </Empty>
      )}
      {others.length > 0 && (
        <section>
          <h2>{t("earlier")}</h2>
          <ul class="cards">
            {others.map((one) => (
              <li key={one.reservationId}>
                <Link href={`/customer/reservations/${one.reservationId}`} class="card row">
                  <span>
                    <strong>{one.hospitalName}</strong>
                    <span class="soft">{longDay(one.date)}</span>
                  </span>
                  <Status one={one} />
                </Link>
              </li>
            ))}
          </ul>
          {others.length + current.length >= STREAMED && !earlier.done && (
            <Button
              onClick={async () => {
                try {
                  const token = await readEarlier(earlier.token);
                  setEarlier({ token, done: !token });
                } catch (error) {
                  say(explain(refusal(error)));
                }
              }}
            >
              {t("showEarlier")}
            </Button>
          )}
        </section>
      )}
    </>
  );
}

export function toneOf(status: ReservationStatus): Tone {
  switch (status) {
    case ReservationStatus.COMPLETED:
    case ReservationStatus.ADMINISTERED:
      return "good";
    case ReservationStatus.APPROVED:
    case ReservationStatus.CANCEL_REQUESTED:
      return "wait";
    case ReservationStatus.REJECTED:
    case ReservationStatus.CALLED_OFF:
    case ReservationStatus.UNSERVED:
      return "bad";
    default:
      return "over";
  }
}

export function Status({ one }: { one: MyReservation }) {
  return <Badge tone={toneOf(one.status)}>{statusName(nameOf(ReservationStatus, one.status))}</Badge>;
}

/** What the status means, with the reason of a rejection. */
export function meaning(one: MyReservation): string {
  if (one.status === ReservationStatus.REJECTED && one.rejectionReason)
    return reasonText(nameOf(DenialReason, one.rejectionReason));
  return statusMeaning(nameOf(ReservationStatus, one.status));
}

function Current({ one }: { one: MyReservation }) {
  return (
    <article class={`ticket ${toneOf(one.status)}`} data-status={nameOf(ReservationStatus, one.status)}>
      <Status one={one} />
      <h2>{longDay(one.date)}</h2>
      <p class="place">{one.hospitalName}</p>
      <p>{meaning(one)}</p>
      {one.vaccineCode && <p class="soft">{vaccineName(one.vaccineCode)}</p>}
      <Link href={`/customer/reservations/${one.reservationId}`} class="button plain">
        {t("reservation")}
      </Link>
    </article>
  );
}
