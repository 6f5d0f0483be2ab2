import { useState } from "preact/hooks";
import type { Vaccination } from "../../gen/vaccination/vaccinemgmt/v1/vaccination_pb.js";
import { useAll } from "../hooks.ts";
import { moment, number, shortDay, t, vaccineName } from "../i18n.ts";
import { AsOf, Button, Empty, Heading, Read, Table } from "../ui/parts.tsx";
import { AssignLot } from "./dose.tsx";
import { type Here, stock, useLots } from "./staff.ts";

/** Who waits for a dose, in the order in which doses are given out. */
export function Waiting({ hospital }: Here) {
  const lots = useLots(hospital.hospitalId);
  const [booking, setBooking] = useState<Vaccination | null>(null);
  const list = useAll(
    (which, signal) => stock.listWaiting({ hospitalId: hospital.hospitalId, ...which }, { signal }),
    (page) => page.vaccinations,
    [hospital.hospitalId],
  );
  const refresh = () => Promise.all([list.reload(), lots.reload()]);
  const onDone = () => {
    setBooking(null);
    void refresh();
  };
  return (
    <>
      <div class="between">
        <Heading>{t("waiting")}</Heading>
        <AsOf at={list.at} zone={hospital.timeZone} onRefresh={refresh} />
      </div>
      <Read from={list}>
        {(all) =>
          all.length ? (
            <>
              <p class="soft">{t("waitingText")}</p>
              <Table
                caption={t("waiting")}
                head={[
                  t("position"),
                  t("customer"),
                  t("day"),
                  t("requestedVaccine"),
                  t("since"),
                  <span class="unseen">{t("what")}</span>,
                ]}
              >
                {all.map((one, index) => (
                  <tr key={one.reservationId}>
                    <td>{number(index + 1)}</td>
                    <th scope="row">
                      {one.customerId}
                      <span class="soft id-short">{one.reservationId.slice(0, 8)}</span>
                    </th>
                    <td class="nowrap">{shortDay(one.date)}</td>
                    <td>{vaccineName(one.requestedVaccineCode)}</td>
                    <td class="nowrap">{moment(one.decideTime?.seconds, hospital.timeZone)}</td>
                    <td>
                      <div class="row-actions">
                        <Button class="small" onClick={() => setBooking(one)}>
                          {t("assign")}
                        </Button>
                      </div>
                    </td>
                  </tr>
                ))}
              </Table>
            </>
          ) : (
            <Empty title={t("nobodyWaits")} />
          )
        }
      </Read>
      {booking && (
        <AssignLot booking={booking} lots={lots} onDone={onDone} onClose={() => setBooking(null)} />
      )}
    </>
  );
}
