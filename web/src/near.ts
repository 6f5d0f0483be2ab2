/** A point on the earth, in degrees. */
export interface Spot {
  latitude: number;
  longitude: number;
}

const EARTH = 6371.0088;
const radians = (degrees: number) => (degrees * Math.PI) / 180;

/** Two decimals: enough to find what is near, and too little to tell in which house somebody lives. */
export function roughly({ latitude, longitude }: Spot): Spot {
  const round = (degrees: number) => Math.round(degrees * 100) / 100;
  return { latitude: round(latitude), longitude: round(longitude) };
}

/** The distance in kilometres, at least 1, since one of the two is only known to about that. */
export function kilometres(one: Spot, other: Spot): number {
  const height = Math.sin(radians(other.latitude - one.latitude) / 2) ** 2;
  const width = Math.sin(radians(other.longitude - one.longitude) / 2) ** 2;
  const chord = height + Math.cos(radians(one.latitude)) * Math.cos(radians(other.latitude)) * width;
  return Math.max(1, Math.round(2 * EARTH * Math.asin(Math.min(1, Math.sqrt(chord)))));
}
